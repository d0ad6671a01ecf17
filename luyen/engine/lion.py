"""Lion: the sign of a momentum that looks at the newest gradient more than its memory does.

Chen et al., 2023, arXiv:2302.06675, algorithm 2. Every number moves by the whole rate, so Lion wants a rate 3 to 10 times smaller
than AdamW's and a decay larger by the same factor (section 5 of the paper).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Signs of an interpolated momentum, with decoupled weight decay; one moment for each weight."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """C = b1 M + (1 - b1) G;  W <- (1 - lr wd) W - lr sign(C);  M <- b2 M + (1 - b2) G."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            beta1, beta2 = group["betas"]
            directions = torch._foreach_lerp(momenta, gradients, 1 - beta1)
            torch._foreach_sign_(directions)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)
