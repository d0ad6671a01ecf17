"""The optimizers of a run by name, with their parameter groups; and Muon.

AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101, algorithm 2) is torch's fused one; the others have files of their own. Muon (Jordan et
al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum matrix by the nearest semi-orthogonal one, found roughly with
five Newton-Schulz iterations; its updates are scaled by 0.2 sqrt(max(A, B)) so that their size is AdamW's and one learning rate and
weight decay serve both (Liu et al., 2025, arXiv:2502.16982, equation 4). torch.optim.Muon always iterates in bf16 and matrix by
matrix; on a CPU bf16 products are emulated, so here they are fp32 there, and equal shapes go through together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from luyen.core.errors import ConfigError
from luyen.engine import average
from luyen.engine.adafactor import Adafactor
from luyen.engine.config import OptimizerConfig
from luyen.engine.eight_bit import NAMES, adamw8bit
from luyen.engine.lion import Lion
from luyen.engine.sgd import SGD
from luyen.models.moe import Router

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of X <- a X + (b X X' + c (X X')^2) X: the steepest slope at 0 that stays bounded near 1."""
NEWTON_SCHULZ_STEPS = 5
MULTIPLE = "multiple"
"""Key of an optimizer's group: its learning rate in multiples of the one that the schedule gives."""


def build(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """The optimizers of a model's trainable parameters; their rates are set by `set_learning_rate` before every update.

    With `ema_decay` every update also updates the average of the weights, in the optimizers' state.

    Muon is for linear maps between hidden states: matrices inside the model's lists of layers. An untied head maps to tokens, a router
    to experts: they stay with AdamW, as everything that does not decay does beside adamw8bit. Raises ConfigError when Muon has nothing
    to do, adamw8bit's library is missing, paged moments have no CUDA device, or a pattern of `rates` names no trained parameter.
    """
    hidden, matrices, plain = split_parameters(model)
    rate, decay = config.learning_rate, config.weight_decay
    optimizers: list[Optimizer] = []
    if config.name == "muon":
        if not hidden:
            raise ConfigError("optimizer.name", found="muon", expected="adamw, as this model has no trainable matrices in a list of layers")
        groups = _groups(matrices, plain, decay)
        optimizers.append(Muon(hidden, lr=rate, momentum=config.momentum, weight_decay=decay))
    elif config.name in NAMES:
        groups = _groups([], plain, decay)
        optimizers += [adamw8bit(hidden + matrices, config)] if hidden + matrices else []
    else:
        groups = _groups(hidden + matrices, plain, decay)
    if groups:
        optimizers.insert(0, _whole(groups, config))
    _set_rates(optimizers, model, config.rates)
    if config.ema_decay is not None:
        average.follow(optimizers, config.ema_decay)
    return optimizers


def _groups(decayed: list[Tensor], plain: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _set_rates(optimizers: list[Optimizer], model: nn.Module, rates: Mapping[str, float]) -> None:
    """Split every optimizer's groups by the multiple of the learning rate that the patterns give its parameters."""
    multiples: dict[int, float] = {}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for pattern, multiple in rates.items():
        found = [parameter for name, parameter in trained.items() if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not found:
            raise ConfigError("optimizer.rates", found=f"{pattern!r}, which names no trained parameter", expected="such as *.bias")
        multiples |= {id(parameter): multiple for parameter in found}
    for optimizer in optimizers if multiples else []:
        split = []
        for group in optimizer.param_groups:
            parts: dict[float, list[Tensor]] = {}
            for parameter in group["params"]:
                parts.setdefault(multiples.get(id(parameter), 1.0), []).append(parameter)
            split += [{**group, "params": members, MULTIPLE: multiple} for multiple, members in parts.items()]
        optimizer.param_groups[:] = split


def _whole(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """The one optimizer of these groups: the named one, or the AdamW that stands beside muon and adamw8bit."""
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    match config.name:
        case "adafactor":
            return Adafactor(groups, lr=rate)
        case "lion":
            return Lion(groups, lr=rate, betas=betas)
        case "sgd":
            return SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov)
    return AdamW(groups, lr=rate, betas=betas, eps=config.epsilon, fused=True)


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Trainable parameters as (matrices in layers, other matrices, the rest): the first two decay.

    The rest are norms, biases and embeddings, also an embedding that is the head as well.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    routers = {id(module.weight) for module in model.modules() if isinstance(module, Router)}
    in_layers = {
        id(parameter)
        for child in model.modules()
        if isinstance(child, nn.ModuleList)
        for parameter in child.parameters()
    }  # fmt: skip
    hidden: list[Tensor] = []
    matrices: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings:
            plain.append(parameter)
        elif parameter.ndim == 2 and id(parameter) in in_layers and id(parameter) not in routers:
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    return hidden, matrices, plain


def set_learning_rate(optimizers: Iterable[Optimizer], rate: float) -> None:
    """Use `rate`, or a group's multiple of it, in the next update."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(MULTIPLE, 1.0)


class Muon(Optimizer):
    """Orthogonalised Nesterov momentum for matrices, with decoupled weight decay."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """M <- m M + (1 - m) G;  W <- (1 - lr wd) W - lr 0.2 sqrt(max(A, B)) orth((1 - m) G + m M)."""
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for (shape, _), parameters in by_shape.items():
                self._update(parameters, group, 0.2 * math.sqrt(max(shape)))

    def _update(self, parameters: list[Tensor], group: dict[str, Any], scale: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        # Nesterov: look one step ahead along the momentum.
        ahead = torch.stack([gradient.lerp(buffer, group["momentum"]) for gradient, buffer in zip(gradients, buffers, strict=True)])
        directions = orthogonalise(ahead)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(directions.to(parameters[0].dtype).unbind()), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """For each of N matrices (N, A, B) = U S V', roughly U V': singular values end in about 0.7 to 1.2, not at 1.

    bf16 on a GPU, fp32 elsewhere. Source: Keller Jordan's post, section "Newton-Schulz".
    """
    a, b, c = NEWTON_SCHULZ
    rows, columns = matrices.shape[-2:]
    x = matrices.to(torch.bfloat16 if matrices.device.type == "cuda" else torch.float32)
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if rows > columns else x
