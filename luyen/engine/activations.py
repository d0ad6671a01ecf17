"""Activation checkpointing as a transform: recompute a layer's inside in the backward pass instead of keeping it.

Chen et al., 2016, arXiv:1604.06174. The layers are the entries of the module's lists (`nn.ModuleList`); only what enters a layer is
kept. Parameter names do not change.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from luyen.core.errors import ConfigError

Activations = Literal["keep", "selective", "recompute"]


@contextlib.contextmanager
def recomputed(module: nn.Module, mode: Activations) -> Iterator[None]:
    """Within the block every layer of `module` (recompute) or every second one (selective) is checkpointed.

    Raises ConfigError when the module has no list of layers.
    """
    layers = [layer for child in module.modules() if isinstance(child, nn.ModuleList) for layer in child]
    chosen = {"keep": [], "selective": layers[::2], "recompute": layers}[mode]
    if mode != "keep" and not chosen:
        raise ConfigError("activations", found=mode, expected="keep, as this model has no list of layers")
    for layer in chosen:
        layer.forward = functools.partial(_recompute, layer.forward)
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _recompute(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(forward, *arguments, use_reentrant=False, **keywords)
