"""Stochastic gradient descent with momentum, Nesterov's as Sutskever et al., 2013 write it, and decoupled decay.

torch.optim.SGD adds the decay to the gradient, so that it goes through the momentum; here it shrinks the weights directly, as with
every other optimizer of this room (Loshchilov and Hutter, 2019, arXiv:1711.05101). Without decay both are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class SGD(Optimizer):
    """Momentum on the plain gradient; without momentum it keeps no state."""

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, nesterov: bool = True, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """M <- m M + G;  W <- (1 - lr wd) W - lr (G + m M) with Nesterov, - lr M without."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            directions = [parameter.grad for parameter in parameters]
            if group["momentum"]:
                for parameter in parameters:
                    if "momentum" not in self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                momenta = [self.state[parameter]["momentum"] for parameter in parameters]
                torch._foreach_mul_(momenta, group["momentum"])
                torch._foreach_add_(momenta, directions)
                directions = list(torch._foreach_add(directions, momenta, alpha=group["momentum"])) if group["nesterov"] else momenta
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])
