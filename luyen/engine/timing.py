"""Where a step's time goes, and how much of the device's rate it used.

    MFU = operations of the model in a step / (seconds of the step x operations a second of a large matrix product here)

Operations are those of the model's own products, forward and backward, as in Chowdhery et al., 2022, arXiv:2204.02311, appendix B:
a weight that multiplies costs 2 for a token forward, 2 for the gradient of its input and 2 for its own where it is trained; causal
attention costs 6 H E len^2 a layer for a sequence of `len`, as half of the square is masked. Recomputed layers and the optimizer's
own products are not counted: they are what MFU is to show. The rate is a measured one, not a data sheet's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from luyen.models.config import TransformerConfig
from luyen.models.counts import attention_pairs
from luyen.models.moe import Mixture

PARTS = ("data", "forward", "backward", "update", "communication", "wait", "other")
"""Of a step, in seconds: getting batches, also the next step's; the loss; its gradient; clipping and optimizer; exchange between processes
(0 in one); waiting for the device until the loss can be read; everything else. They add up to the step."""


class Clock:
    """Adds up the seconds of a step's parts.

    A GPU works behind the program's back: there forward and backward are the time until all was launched, and what it still had to
    do then is in `wait`. With `synchronise` the program waits at the end of every part, so that each has its own time and the step is
    a little slower.
    """

    def __init__(self, device: torch.device, synchronise: bool = False) -> None:
        self.device, self.synchronise = device, synchronise and device.type != "cpu"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._started = time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time of the block belongs to the part `name`."""
        started = time.perf_counter()
        yield
        if self.synchronise:
            torch.accelerator.synchronize(self.device)
        self._seconds[name] += time.perf_counter() - started

    def stop(self) -> dict[str, float]:
        """The step's seconds as `seconds`, and each part's; `other` is what no part has."""
        whole = time.perf_counter() - self._started
        self._seconds["other"] = max(0.0, whole - sum(seconds for name, seconds in self._seconds.items() if name != "other"))
        return {"seconds": whole, **self._seconds}


class OperationCount:
    """Operations of a model's products for a token, a target and a pair of query and key; without attention for one that is no Transformer.

    Of experts as many count for a token as it goes to.
    """

    def __init__(self, model: nn.Module) -> None:
        head = getattr(model, "head_weight", None)
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        maps = [weight for weight in getattr(model, "lm_head", nn.Identity()).parameters()]  # the head's own, also within an adapter
        left_out = tables | {id(head), *map(id, maps)}
        matrices = [weight for weight in model.parameters() if weight.ndim > 1 and id(weight) not in left_out]
        self.token = sum(map(_multiplications, matrices)) - sum(_idle(module) for module in model.modules() if isinstance(module, Mixture))
        self.target = 0 if head is None else _multiplications(head)
        config = getattr(model, "config", None)
        self.config = config if isinstance(config, TransformerConfig) else None

    def of(self, batches: Iterable[Any]) -> float:
        """Operations for these batches; lengths are taken from those that are packed (`lengths`)."""
        return float(
            sum(
                self.token * batch.tokens_T.numel() + self.target * batch.num_targets + sum(map(self.pairs, getattr(batch, "lengths", ())))
                for batch in batches
            )
        )

    def pairs(self, length: int) -> float:
        """Operations of attention between the tokens of one sequence: two products of a head's size, forward and backward."""
        if self.config is None:
            return 0.0
        return 12 * self.config.num_heads * self.config.head_dim * attention_pairs(self.config, length)


def _idle(mixture: Mixture) -> int:
    """What the experts that a token does not go to would take for it."""
    whole = sum(map(_multiplications, mixture.experts.parameters()))
    return whole - whole * mixture.per_token // mixture.gate.weight.shape[0]


def _multiplications(weight: torch.Tensor) -> int:
    return weight.numel() * (6 if weight.requires_grad else 4)


def row(seconds: Mapping[str, float], tokens: int, operations: float, rate: float | None, peak_bytes: int) -> dict[str, float]:
    """A step's row of timings.jsonl without its number: parts, `tokens_per_second`, `mfu` where the rate is known, `peak_bytes`."""
    whole = seconds["seconds"]
    used = {} if rate is None else {"mfu": round(operations / (whole * rate), 4)}
    parts = {name: round(value, 6) for name, value in seconds.items()}
    return {**parts, "tokens_per_second": round(tokens / whole, 1), **used, "peak_bytes": peak_bytes}
