"""Tokens that move between the ranks of a group, with gradients; what sequence and context parallelism stand on.

Every rank of a group of R holds a piece of S tokens; a piece may end in zeros where R does not divide the tokens. The gradient of every
function here is the one of the whole computation, under what its docstring says of the ranks' gradients.

Shapes: R ranks, S tokens of a piece, further dimensions as they come.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

# The second names are those of torch before 2.13, which warns of them.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather(piece_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All pieces one after another, (R S, ...). Every rank then computes a part of what is made of them, so their gradients are added."""
    output: Tensor = _Gather.apply(piece_S, group, True)  # type: ignore[no-untyped-call]
    return output


def gather_equal(piece_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All pieces one after another, (R S, ...). Every rank then computes the same of them, so each keeps its slice of the one gradient."""
    output: Tensor = _Gather.apply(piece_S, group, False)  # type: ignore[no-untyped-call]
    return output


def add_and_deal(parts_RS: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's piece, (S, ...), of the sum of what the ranks have."""
    output: Tensor = _AddAndDeal.apply(parts_RS, group)  # type: ignore[no-untyped-call]
    return output


def add_gradients(states: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The same tensor; every rank computes a part of what is made of it, so their gradients are added on all."""
    output: Tensor = _AddGradients.apply(states, group)  # type: ignore[no-untyped-call]
    return output


def add(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of what the ranks have, on all of them. Every rank then computes the same of it."""
    output: Tensor = _Add.apply(part, group)  # type: ignore[no-untyped-call]
    return output


def scale_gradient(states: Tensor, factor: float) -> Tensor:
    """The same tensor, its gradient times `factor`."""
    output: Tensor = _ScaleGradient.apply(states, factor)  # type: ignore[no-untyped-call]
    return output


def lengthen(states_N: Tensor, length: int) -> Tensor:
    """The same with zeros behind it up to `length` along the first dimension."""
    missing = length - states_N.shape[0]
    return functional.pad(states_N, (0, 0) * (states_N.ndim - 1) + (0, missing)) if missing else states_N


def piece_length(length: int, ranks: int) -> int:
    """Tokens of each piece that hold `length` of them together."""
    return -(-length // ranks)


def all_gathered(piece_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All pieces one after another, without gradient."""
    whole_RS = piece_S.new_empty(group.size() * piece_S.shape[0], *piece_S.shape[1:])
    _all_gather(whole_RS, piece_S.contiguous(), group=group)
    return whole_RS


def added_and_dealt(parts_RS: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's piece of the ranks' sum, without gradient."""
    piece_S = parts_RS.new_empty(parts_RS.shape[0] // group.size(), *parts_RS.shape[1:])
    _reduce_scatter(piece_S, parts_RS.contiguous(), group=group)
    return piece_S


def added(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' sum, in a new tensor, without gradient."""
    total = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Gather(torch.autograd.Function):
    """Backward gives this rank its slice, of the ranks' sum where each has a part of the gradient."""

    @staticmethod
    def forward(ctx: Any, piece_S: Tensor, group: dist.ProcessGroup, parts: bool) -> Tensor:
        ctx.group, ctx.parts = group, parts
        return all_gathered(piece_S, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if ctx.parts:
            return added_and_dealt(gradients[0], ctx.group), None, None
        return gradients[0].chunk(ctx.group.size())[ctx.group.rank()], None, None


class _AddAndDeal(torch.autograd.Function):
    """Every part has the same share in the sum, so each gets the gradients of all pieces."""

    @staticmethod
    def forward(ctx: Any, parts_RS: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return added_and_dealt(parts_RS, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_gathered(gradients[0], ctx.group), None


class _AddGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return added(gradients[0], ctx.group), None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        return added(part, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
