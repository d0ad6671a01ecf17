"""The layers of a model, and another forward pass around each for a while: what compiling and computing again stand on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from luyen.core.errors import ConfigError

Forward = Callable[..., Any]


@contextlib.contextmanager
def wrapped(module: nn.Module, wrap: Callable[[Forward], Forward], setting: str, found: str, expected: str) -> Iterator[None]:
    """Within the block the forward of every entry of the module's lists (`nn.ModuleList`) is `wrap` of what it was.

    Afterwards each is as it was found, so such blocks may stand in one another. Raises ConfigError about the `setting`, of which that
    value was `found`, when the module has no list of layers.
    """
    layers = [layer for child in module.modules() if isinstance(child, nn.ModuleList) for layer in child]
    if not layers:
        raise ConfigError(setting, found=found, expected=f"{expected}, as this model has no list of layers")
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = wrap(layer.forward)
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            del layer.forward
            if earlier is not None:
                layer.forward = earlier
