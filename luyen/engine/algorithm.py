"""What the loop asks of an algorithm, what it calls at evaluations, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from luyen.objectives.loss import Loss


class Batch(Protocol):
    """What the loop asks of a batch."""

    @property
    def tokens_T(self) -> Tensor:
        """Token ids; only their number is read here."""

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Which samples are in it."""

    @property
    def num_targets(self) -> int:
        """Items that its loss sums over."""

    def to(self, device: Any) -> Batch:
        """The batch on another device."""


class Algorithm(Protocol):
    """A stream of batches and a loss."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def batches_ahead(self) -> bool:
        """Whether the batches depend on the data and their state alone: not on the weights, nor on any global random numbers.

        The next step's are then made while the device works on this one's; a rollout, which asks the model, must wait for the update.
        """

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Endless (batch, state); `batches(state)` continues right after the batch that was yielded with `state`."""

    def loss(self, batch: Any) -> Loss:
        """The summed loss of a batch; its count equals `batch.num_targets`."""


@dataclass(frozen=True)
class Hooks:
    """What happens at every evaluation, with the model in eval mode and without gradients. Random state is put back afterwards."""

    evaluate: Callable[[], Mapping[str, float]] | None = None
    """Measures the model as it is now; becomes a row of metrics.jsonl."""
    measured: Callable[[int, Mapping[str, float]], None] | None = None
    """Told the step and what was measured, after the rows are written; what it raises ends the run."""
    samples: Callable[[], Iterable[Mapping[str, str]]] | None = None
    """Texts of the model as it is now; become rows of samples.jsonl."""
    updated: Callable[[int, int], None] | None = None
    """Told the number of a step, from 1, and of all steps, when its update is done and its gradients are still there."""
    stepped: Callable[[Mapping[str, Any]], None] | None = None
    """Told the row of metrics.jsonl of every step, the means of the loss and of its metrics over all processes among it."""
    rate: float | None = None
    """Operations a second of a large matrix product on the device; with it timings.jsonl says how much of it a step used."""
    operations: float | None = None
    """Operations of the whole run, as estimated; with it `compile: auto` knows whether compiling pays."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run did, all resumed parts together."""

    steps: int
    tokens: int
    """Tokens read."""
    targets: int
    """Targets trained on."""
    loss: float
    """Mean loss of the last update."""
    evaluation: dict[str, float]
    """The last evaluation."""
    seconds: float
    """Time in the loop; work that a kill destroyed is not in it."""
    peak_bytes: int
    """Most memory held by this process (or its GPU)."""
    joules: float | None
    """Energy, None where it cannot be measured."""
    ended: str = "steps"
    """Why the run ended: steps, tokens, time, plateau."""
    alarms: int = 0
    """How often a jump of the loss or the gradient's norm was told."""
