"""Adafactor: a second moment kept as one row and one column of means, so its state is a few numbers for each row of a matrix.

Shazeer and Stern, 2018, arXiv:1804.04235: algorithm 4 (matrices) and 5 (vectors) with the decay of section 7.2 and update clipping of
section 6. The rate is the one that is given: the paper's relative step (section 8) and its first moment are left out, so the schedule and
the learning rate mean what they mean for AdamW. torch.optim.Adafactor always multiplies the rate by the size of the weights and
limits it by 1 / sqrt(step), which is why it is not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SQUARE_FLOOR = 1e-30
"""epsilon 1 of the paper, added to every squared gradient."""
DECAY_POWER = 0.8
"""The second moment forgets with beta(t) = 1 - t^-0.8."""
LARGEST_UPDATE = 1.0
"""d of the paper: larger root mean squares of an update are scaled down to it."""


class Adafactor(Optimizer):
    """Factored second moment and clipped updates, with decoupled weight decay."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """U = G / sqrt(V);  W <- (1 - lr wd) W - lr U / max(1, rms(U) / d), with V = row column / mean(row) for matrices."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._direction(parameter, parameter.grad)
                    size = update.square().mean().sqrt()
                    update.div_((size / LARGEST_UPDATE).clamp_(min=1.0))
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"])

    def _direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The gradient over the root of its second moment. More than two dimensions: the last two are factored."""
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        share = state["step"] ** -DECAY_POWER
        square = gradient.square().add_(SQUARE_FLOOR)
        if gradient.ndim < 2:
            return gradient * _follow(state, "square", square, share).rsqrt()
        row = _follow(state, "row", square.mean(dim=-1, keepdim=True), share)
        column = _follow(state, "column", square.mean(dim=-2, keepdim=True), share)
        return gradient * (row / row.mean(dim=-2, keepdim=True)).rsqrt_() * column.rsqrt()


def _follow(state: dict[str, Any], key: str, value: Tensor, share: float) -> Tensor:
    """The running mean after `value` has joined it with weight `share`; the first value is the mean."""
    if key not in state:
        state[key] = value
    else:
        state[key].lerp_(value, share)
    found: Tensor = state[key]
    return found
