"""Any algorithm with a penalty on its model: what a method of tuning adds to whatever is trained.

    L = (sum of the algorithm's loss) / count + penalty

A loss is a sum that the engine divides by the count over all micro-batches and processes, so each batch adds penalty x its own count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from luyen.engine.algorithm import Algorithm
from luyen.objectives.loss import Loss


class Penalised:
    """The batches of another algorithm and its loss with the penalty."""

    def __init__(self, algorithm: Algorithm, penalty: Callable[[], Tensor]) -> None:
        self.algorithm, self.penalty = algorithm, penalty

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self.algorithm.model

    @property
    def batches_ahead(self) -> bool:
        """As the algorithm says."""
        return self.algorithm.batches_ahead

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The algorithm's."""
        return self.algorithm.batches(state)

    def loss(self, batch: Any) -> Loss:
        """The algorithm's loss and the penalty, which is logged apart as well."""
        loss = self.algorithm.loss(batch)
        penalty = self.penalty() * loss.count
        return replace(loss, total=loss.total + penalty, metrics={**loss.metrics, "penalty": (penalty.detach(), float(loss.count))})
