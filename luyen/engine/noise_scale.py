"""The gradient noise scale: up to about which batch size a larger batch still makes better steps.

McCandlish et al., 2018, arXiv:1812.06162, appendix A.1. A mean gradient over B items has the expected squared norm |G|^2 + S / B, where
G is the true gradient and S the sum of the items' variances. Two sizes of one step give both, without bias:

    |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)        S = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)

Here b is the first micro-batch of a step and B the whole step, both counted in targets, so S / |G|^2 is a batch size in targets. One step
says little; the two are averaged over steps before they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

DECAY = 0.99
"""Of the running means: they look back over about a hundred steps."""


def parts(small: float, small_norm: float, large: float, large_norm: float) -> tuple[float, float]:
    """S and |G|^2 of one step, from the norms of mean gradients over `small` and `large` items; either may come out negative."""
    square = (large * large_norm**2 - small * small_norm**2) / (large - small)
    spread = (small_norm**2 - large_norm**2) / (1 / small - 1 / large)
    return spread, square


def follow(before: Mapping[str, float], spread: float, square: float) -> dict[str, float]:
    """The running sums of S and |G|^2 after one more step; {} before the first. What both lack at the start cancels in their ratio."""
    new = {"spread": spread, "square": square}
    return {name: DECAY * before.get(name, 0.0) + (1 - DECAY) * value for name, value in new.items()}


def scale(sums: Mapping[str, float]) -> float | None:
    """S / |G|^2 in items; None while the sums are too noisy to tell, which they are when one is not above 0."""
    return sums["spread"] / sums["square"] if sums and min(sums.values()) > 0 else None


class Meter:
    """What one step shows of the noise scale: the gradient of its first micro-batch is measured before the others are added to it."""

    def __init__(self, targets: int) -> None:
        """A step over this many targets."""
        self.targets = targets
        self.norm: Tensor | float = 0.0
        """Norm of the gradient of the first micro-batch, on the device until it is read with the step's other figures."""
        self._first = 0

    def see(self, model: nn.Module, targets: int) -> None:
        """After the backward pass of a micro-batch of `targets` targets. Only the first that has any is measured, and no whole step."""
        if not self._first and 0 < targets < self.targets:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            self._first, self.norm = targets, torch.nn.utils.get_total_norm(gradients, foreach=True)

    def tell(self, sums: dict[str, float], norm: float, loss_scale: float) -> dict[str, float | None]:
        """Add the step, whose mean gradient has this `norm`, to the running sums in place. Returns what the log says of it.

        `loss_scale` is what the loss was multiplied by. Nothing is added and said when the step was one micro-batch.
        """
        if not self._first:
            return {}
        small = self._first
        mean_norm = float(self.norm) * self.targets / small / loss_scale  # every gradient was divided by the count of the whole step
        sums.update(follow(sums, *parts(small, mean_norm, self.targets, norm)))
        return {"noise_scale": scale(sums)}
