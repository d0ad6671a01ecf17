"""What a base in few bits costs: how far its weights are from the original ones, and how far what it says of a text."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from luyen.adapters.quantized import quantized_maps
from luyen.adapters.quantized_load import Stored
from luyen.core.errors import ModelError
from luyen.core.plural import exactly
from luyen.models import hf
from luyen.models.transformer import Transformer

POSITIONS = 256
"""Positions whose logits are compared at once."""


@dataclass(frozen=True)
class QuantizationError:
    """What few bits cost: in each map, and in what the model says."""

    maps: dict[str, float]
    """|W - W'| / |W| of each map."""
    weights: int
    nbytes: int
    """Of the quantized maps."""
    kind: str
    logits: float | None = None
    """|z - z'| / |z| of the logits z, each less its mean over the vocabulary; None where no text was given."""
    same_choice: float | None = None
    """Share of the positions whose likeliest next token stays."""

    def lines(self) -> list[str]:
        """In words, three lines, or two without a text."""
        worst = max(self.maps, key=self.maps.__getitem__)
        mean = (sum(error**2 for error in self.maps.values()) / len(self.maps)) ** 0.5
        size = f"{self.weights:,} weights, {self.nbytes / 1e6:,.1f} MB, {self.nbytes / self.weights:.3f} bytes each"
        said = [
            f"{exactly(len(self.maps), 'map')} in {self.kind}: {size}",
            f"weights are off by {mean:.2%} of their size, at most {self.maps[worst]:.2%} ({worst})",
        ]  # fmt: skip
        if self.logits is not None and self.same_choice is not None:
            said.append(f"logits are off by {self.logits:.1%} of theirs, and {self.same_choice:.1%} of the likeliest next tokens stay")
        return said


def quantization_error(
    model: nn.Module, original: str | Path | nn.Module | None = None, tokens_BT: Tensor | None = None
) -> QuantizationError:
    """The error of every map as it was when it was quantized; with the original and a text also that of the logits.

    The original is its folder, of which one map at a time is read, or the model as it was before. ModelError when nothing is quantized.
    """
    maps = dict(quantized_maps(model))
    if not maps:
        raise ModelError("no map of this model is quantized")
    first = next(iter(maps.values()))
    weights, held = (
        sum(module.in_features * module.out_features for module in maps.values()),
        sum(module.nbytes() for module in maps.values()),
    )
    errors = {name: module.error for name, module in maps.items()}
    if original is None or tokens_BT is None:
        return QuantizationError(errors, weights, held, first.kind)
    return QuantizationError(errors, weights, held, first.kind, *_logits_error(cast(Transformer, model), original, tokens_BT))


@torch.no_grad()
def _logits_error(model: Transformer, original: str | Path | nn.Module, tokens_BT: Tensor) -> tuple[float, float]:
    """(|z - z'| / |z|, share of equal choices), a few positions at a time."""
    with _original_weights(model, original):
        before = model(tokens_BT)
    off = size = same = 0.0
    for one, other in zip(before.flatten(0, -2).split(POSITIONS), model(tokens_BT).flatten(0, -2).split(POSITIONS), strict=True):
        expected, found = (logits - logits.mean(-1, keepdim=True) for logits in (model.logits(one).float(), model.logits(other).float()))
        same += float((expected.argmax(-1) == found.argmax(-1)).sum())
        size += float(expected.square().sum())
        off += float(found.sub_(expected).square().sum())
    return (off / size) ** 0.5, same / tokens_BT.numel()


@contextlib.contextmanager
def _original_weights(model: nn.Module, original: str | Path | nn.Module) -> Iterator[None]:
    """Within the block the model computes with the original weights in the place of its codes, one read for each product."""
    maps = dict(quantized_maps(model))
    if isinstance(original, nn.Module):
        source = {f"{name}.weight": cast(Tensor, original.get_submodule(name).weight) for name in maps}
        read: Callable[[str], Tensor] = source.__getitem__
    else:
        read = Stored(hf.locate(original), hf.load(original, "meta")).read
    for name, module in maps.items():
        module.instead = functools.partial(read, f"{name}.weight")
    try:
        yield
    finally:
        for module in maps.values():
            module.instead = None
