"""What every algorithm's `loss(batch)` returns: a sum and its count. Only the engine divides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Metrics = Mapping[str, tuple[Tensor | float, float]]


@dataclass(frozen=True)
class Loss:
    """The sum of a loss over its items and how many there are.

    Divided by the count over all micro-batches, the gradient does not depend on how a step is split into them.
    """

    total: Tensor
    """Scalar; the sum, not the mean."""
    count: int
    """Number of items in the sum (trained tokens, pairs, ...), equal to the batch's `num_targets`."""
    metrics: Metrics = field(default_factory=dict)
    """Name to (sum, count): further means for the log, without gradient."""
