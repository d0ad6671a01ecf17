"""Products of the layers in 8-bit floating point, as a transform, by torchao's float8 training (the extra `fp8`).

Micikevicius et al., 2022, arXiv:2209.05433: inputs and weights in e4m3, gradients in e5m2, each tensor divided by its largest number
before, so of every linear map in the model's lists of layers all three products, y = W x, dx = W' dy and dW = dy x', are made of 8-bit
numbers and summed in more. Weights, optimizer and checkpoints stay fp32, all else is as in a bf16 run: norms, attention, embedding, head. A
linear map with a size that is no multiple of 16, which the units want, stays bf16, and so do experts: one may have no token in a pass, and
of nothing there is no largest number. Only training goes through it: what is evaluated and
written is the model in its plain types. Parameter names do not change, and after the block the modules are those of before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.core.errors import ConfigError
from luyen.models.moe import Experts

CAPABILITY = (8, 9)
"""The first GPUs that multiply 8-bit floats: Ada (8.9), then Hopper (9.0)."""
MULTIPLE = 16
"""Of which both sizes of a matrix must be a multiple; the number of tokens is filled up."""
TALKERS = ("torchao", "torch.utils._pytree")
"""Loggers that warn while torchao is imported: of kernels for other GPUs, and of its use of torch."""


def check(device: torch.device, tensor_ranks: int) -> None:
    """Raise ConfigError unless this device multiplies 8-bit floats and the layers' products are whole."""
    if tensor_ranks > 1:
        fix = "Use train.parallel.shard, or bf16."
        raise ConfigError("train.precision with train.parallel.tensor", found="fp8", expected="bf16, as products are in parts", fix=fix)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < CAPABILITY:
        found = f"fp8 on {device.type}" + ("" if capability is None else f" of compute capability {'.'.join(map(str, capability))}")
        raise ConfigError(
            "train.precision", found=found, expected="a GPU of compute capability 8.9 or more", fix="Set train.precision=bf16."
        )


@contextlib.contextmanager
def trained_in_fp8(model: nn.Module, wanted: bool, emulate: bool = False) -> Iterator[None]:
    """Within the block the linear maps of the layers multiply 8-bit numbers where gradients are taken, if that is `wanted`.

    `emulate`: the same numbers in products of a wider type, on any device. Raises ConfigError when the package is missing or no layer has
    a linear map of fitting sizes.
    """
    if not wanted:
        yield
        return
    places = _linears(model)
    if not places:
        found = "no linear map in a list of layers with two sizes that are multiples of 16"
        raise ConfigError("train.precision fp8", found=found, fix="Change the model's sizes, or set train.precision=bf16.")
    library = _library()
    config = library.Float8LinearConfig(emulate=emulate, pad_inner_dim=True)  # dW sums over tokens, of which there are any number
    chosen = {id(linear) for _, _, linear in places}
    library.convert_to_float8_training(model, module_filter_fn=lambda module, _: id(module) in chosen, config=config)
    for parent, name, _ in places:
        made = getattr(parent, name)
        made.__class__ = _where_trained(type(made))
    try:
        yield
    finally:
        for parent, name, linear in places:
            made = getattr(parent, name)
            linear.weight, linear.bias, linear.training = made.weight, made.bias, made.training  # a split run has made them anew
            setattr(parent, name, linear)


def _linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear maps of fitting sizes in the model's lists of layers, by parent and name there; not those of experts."""
    within_experts = {id(module) for experts in model.modules() if isinstance(experts, Experts) for module in experts.modules()}
    return [
        (parent, name, child)
        for listed in model.modules()
        if isinstance(listed, nn.ModuleList)
        for parent in listed.modules()
        if id(parent) not in within_experts
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child.in_features % MULTIPLE == child.out_features % MULTIPLE == 0
    ]


@functools.cache
def _where_trained(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of torchao's linear map, with the plain product where no gradient is taken."""

    def forward(self: Any, hidden: Tensor) -> Tensor:
        return kind.forward(self, hidden) if torch.is_grad_enabled() else functional.linear(hidden, self.weight, self.bias)

    return type(f"Trained{kind.__name__}", (kind,), {"forward": forward})


def _library() -> Any:
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        return importlib.import_module("torchao.float8")
    except ImportError as error:
        fix = 'Type: pip install ".[fp8]" in luyen\'s folder, or set train.precision=bf16.'
        raise ConfigError("train.precision", found="fp8, but torchao is not installed", fix=fix) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
