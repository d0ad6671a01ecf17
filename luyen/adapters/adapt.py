"""An adapter on a model: the table of methods, what is trained then, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from luyen.adapters.adalora import adalora
from luyen.adapters.bitfit import bitfit
from luyen.adapters.bottleneck import bottleneck
from luyen.adapters.compacter import compacter
from luyen.adapters.config import AdapterConfig
from luyen.adapters.dora import dora
from luyen.adapters.esft import esft
from luyen.adapters.ia3 import ia3
from luyen.adapters.linear import AdaptedLinear, adapted, replace_each
from luyen.adapters.lora import lora
from luyen.adapters.new_tokens import settle_rows
from luyen.adapters.preamble import preamble_of
from luyen.adapters.prefix import prefix
from luyen.adapters.prompt import p_tuning, prompt
from luyen.adapters.quantized import count_weights, dequantize
from luyen.adapters.selective import selective
from luyen.adapters.targets import whole_parameters
from luyen.core.errors import ConfigError, ModelError
from luyen.models.moe import Router

METHODS: dict[str, Callable[[nn.Module, AdapterConfig], None]] = {
    "adalora": adalora,
    "bitfit": bitfit,
    "bottleneck": bottleneck,
    "compacter": compacter,
    "dora": dora,
    "esft": esft,
    "ia3": ia3,
    "lora": lora,
    "p-tuning": p_tuning,
    "prefix": prefix,
    "prompt": prompt,
    "selective": selective,
}
"""Each puts its modules into a frozen model; what they add is trained."""


@dataclass(frozen=True)
class Trained:
    """A group of parameters that are trained."""

    module: str
    count: int


def adapt(model: nn.Module, config: AdapterConfig) -> None:
    """Freeze a model and put the adapter on it, in place; `full` leaves all weights trained.

    New weights are drawn from torch's generator. Raises ConfigError where a pattern matches nothing or a size does not fit.
    """
    if config.method == "full":
        return
    also = whole_parameters(model, config.also)
    model.requires_grad_(False)
    METHODS[config.method](model, config)
    names = {name.replace(".base.", "."): parameter for name, parameter in model.named_parameters()}
    for name in also:
        names[name].requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("adapter", found=f"method {config.method}, which trains nothing here")


def merge_in_place(model: nn.Module) -> None:
    """Put a plain linear map that computes the same in the place of each adapted one; all weights are trained then.

    They are of the model's own type, that of the embedding, and each old weight is freed before the next map is merged. Raises
    ModelError, with the model left as it was, where an adapter cannot be merged.
    """
    if preamble := preamble_of(model):
        raise ModelError(f"{preamble} learned positions cannot be merged into weights", fix="Keep the adapter beside the model.")
    maps = {name: type(module) for name, module in adapted(model)}
    for name, kind in maps.items():
        if kind.merged is AdaptedLinear.merged:
            raise ModelError(f"{name}: {kind.__name__} cannot be merged into a weight", fix="Keep the adapter beside the model.")
    settle_rows(model)
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    replace_each(model, list(maps), lambda _, module: _plain(cast(AdaptedLinear, module), dtype))
    dequantize(model, dtype)
    model.requires_grad_(True)


def _plain(module: AdaptedLinear, dtype: torch.dtype) -> nn.Module:
    weight, bias = module.merged()
    if isinstance(module.base, Router):  # a router stays one: its scores are exact
        module.base.weight = nn.Parameter(weight.to(dtype))
        return module.base
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.to(dtype))
    if bias is not None:
        made.bias = nn.Parameter(bias.to(dtype))
    return made


def trained_of_all(model: nn.Module) -> tuple[int, int]:
    """Numbers that are trained, and all that the model is made of with what the adapter adds, however they are held."""
    return sum(group.count for group in trained(model)), count_weights(model)


def trained(model: nn.Module) -> list[Trained]:
    """What is trained of a model: parameters by the module that owns them, in order."""
    groups: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = name.rpartition(".")[0]
            groups[owner] = groups.get(owner, 0) + parameter.numel()
    return [Trained(module, count) for module, count in groups.items()]
