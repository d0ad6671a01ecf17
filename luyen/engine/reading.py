"""Figures of a step come from the device to the host together: every read waits for all that the device was told to do before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(figures: Sequence[Tensor | float]) -> list[float]:
    """The values, in order, in one read for every type and device among the tensors, of which a step has one. No bit is rounded."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    values = [0.0 if isinstance(figure, Tensor) else float(figure) for figure in figures]
    for place, figure in enumerate(figures):
        if isinstance(figure, Tensor):
            groups.setdefault((figure.dtype, figure.device), []).append(place)
    for places in groups.values():
        tensors = [figures[place] for place in places]
        read = torch.stack([tensor.detach().reshape(()) for tensor in tensors if isinstance(tensor, Tensor)]).tolist()
        for place, value in zip(places, read, strict=True):
            values[place] = float(value)
    return values
