"""torch.compile as a transform: each layer's forward and backward pass become a few fused kernels; attention stays as it is.

Ansel et al., 2024 (PyTorch 2, ASPLOS). The entries of the module's lists (`nn.ModuleList`) are compiled one by one, so layers of one shape
share one compilation, which takes a quarter of the time that the whole model would. Norms, rotations, the gated product and residual sums
are what is fused; matrix products are the library's either way. Only training goes through it: evaluations and generation, whose shapes
change from call to call, take the plain way. Parameter names do not change. Results differ from the plain way's in the last bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from luyen.core import progress
from luyen.core.errors import ConfigError
from luyen.engine.layers import wrapped
from luyen.models import moe, transformer

Compile = Literal["auto", "always", "never"]

WORTH = {"cpu": 2e14, "cuda": 5e16}
"""Operations of a run from which compiling pays, by kind of device: about ten minutes on two cores, two on a large GPU. It takes about
15 seconds on two cores and makes steps 3 to 6 % faster there; a GPU was not measured."""


def worth(wanted: Compile, operations: float | None, device: torch.device, splits_layers: bool, activations: str = "none") -> bool:
    """Whether to compile: as `wanted`, or for `auto` by the operations of the whole run, never by a clock.

    A run whose layers are split over processes is not compiled, nor is one with selective activations: the compiler decides by itself what
    its code keeps, and the cheap outputs would be kept again. Raises ConfigError when `always` meets such a run, or when the device has no
    compiler; `auto` then says so and goes the plain way.
    """
    if wanted == "never" or (wanted == "auto" and (splits_layers or (operations or 0.0) < WORTH.get(device.type, float("inf")))):
        return False
    if splits_layers:
        fix = "Set train.compile=auto, or use data and shard."
        raise ConfigError("train.compile with layers split over processes", found="always", expected="auto or never", fix=fix)
    if activations == "selective":
        if wanted == "auto":
            return False
        fix = "Set train.compile=auto, or train.activations to none or full."
        raise ConfigError("train.compile with train.activations=selective", found="always", expected="auto or never", fix=fix)
    missing = missing_compiler(device)
    if missing and wanted == "always":
        raise ConfigError("train.compile", found=f"always, and {missing}", expected="auto or never", fix="Install one, or set auto.")
    if missing:
        progress.say(f"not compiled, though the run is long enough for it to pay: {missing}")
    return not missing


def missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks for this device; empty when it has all."""
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "no C++ compiler was found"
        return ""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "triton is not installed or does not know this GPU"
    return f"torch compiles nothing for {device.type}"


@contextlib.contextmanager
def compiled(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Within the block the layers of `module` are compiled where gradients are taken, if that is `wanted`.

    Raises ConfigError when the module has no list of layers.
    """
    if not wanted:
        yield
        return
    with wrapped(module, _where_trained, "train.compile", found="always", expected="never"), _left_as_it_is():
        yield


@contextlib.contextmanager
def _left_as_it_is() -> Iterator[None]:
    """Leave attention over packed sequences and mixtures of experts as they are: they follow the lengths of one batch and the choices of
    its tokens, and every batch has others.

    Marked here and not where they are defined, since marking anything loads the whole compiler, a second that other runs need not spend.
    """
    whole, mixture = transformer.packed_attention, moe.Mixture.forward
    transformer.packed_attention = torch.compiler.disable(whole)
    moe.Mixture.forward = torch.compiler.disable(mixture)  # type: ignore[method-assign]
    try:
        yield
    finally:
        transformer.packed_attention = whole
        moe.Mixture.forward = mixture  # type: ignore[method-assign]


def _where_trained(forward: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(forward)

    def either(*arguments: Any, **keywords: Any) -> Any:
        return (fast if torch.is_grad_enabled() else forward)(*arguments, **keywords)

    return either
