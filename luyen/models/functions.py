"""Small functions with their gradients written out: fewer passes over memory and fewer tensors kept than autograd would take.

On a CPU these passes, and the page faults of every new large tensor, cost as much as the matrix products of a small
model. Every gradient here is checked against autograd's in the tests. While torch compiles, the plain formulas are given
instead: the compiler fuses them with their neighbours and derives the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luyen.models.cheap import cheap

Again = tuple[tuple[Tensor, Tensor], ...]
"""Rows that stand at several places and those places: a pair for the second places of all that have one, for the third, and so on."""


class RMSNormFunction(torch.autograd.Function):
    """x r w with r = 1 / sqrt(mean(x^2) + eps) over the last dimension.

    dx = r (g w) - x r^3 mean(g w x),  dw = sum over rows of g x r.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        output: Tensor = (hidden * scale).mul_(weight)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, scale = ctx.saved_tensors
        product = gradients[0] * hidden
        flat = product.reshape(-1, product.shape[-1])
        weight_gradient = scale.reshape(-1) @ flat if ctx.needs_input_grad[1] else None
        pull = (flat @ weight).view_as(scale) * scale.pow(3) / -hidden.shape[-1]
        torch.mul(gradients[0], weight, out=product)
        return product.mul_(scale).addcmul_(hidden, pull), weight_gradient, None


class SwiGLUFunction(torch.autograd.Function):
    """silu(gate) * up; silu(gate) is computed again in backward instead of kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_gradient = gradients[0] * up
        torch.ops.aten.silu_backward.grad_input(gate_gradient, gate, grad_input=gate_gradient)
        return gate_gradient, functional.silu(gate).mul_(gradients[0])


class RotateFunction(torch.autograd.Function):
    """x cosine + swap(x) sine, where swap exchanges the halves of the last dimension and sine is (-s, s).

    swap(sine) = -sine, so backward turns by the opposite angle and needs the angles alone.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return turn(states, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return turn(gradients[0], cosine, sine.neg()), None, None


def turn(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The forward of RotateFunction, in one new tensor."""
    return states.roll(states.shape[-1] // 2, -1).mul_(sine).addcmul_(states, cosine)


class PadFunction(torch.autograd.Function):
    """rows[index] into padded grids; inverse is the place of each row there, again are its further ones.

    Backward is a gather too: a place that only repeats a row (padding) gets no gradient, since no real query sees it. Further places are
    added in their order, so the sum is the same every time.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, again: Again) -> Tensor:
        ctx.save_for_backward(inverse, *(tensor for pair in again for tensor in pair))
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, *again = ctx.saved_tensors
        gradient = gradients[0].index_select(0, inverse)
        for which, places in zip(again[::2], again[1::2], strict=True):
            gradient.index_copy_(0, which, gradient.index_select(0, which) + gradients[0].index_select(0, places))
        return gradient, None, None, None


class UnpadFunction(torch.autograd.Function):
    """places[index] out of padded grids; the places left out get a zero gradient."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = places.shape[0]
        return places.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].new_zeros(ctx.size, *gradients[0].shape[1:])
        return whole.index_copy_(0, ctx.saved_tensors[0], gradients[0]), None


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, in the autocast type where that is on: all who read it would turn it into that, each for itself."""
    if weight.dtype == torch.float32 and hidden.dtype != torch.float32:  # what a product gave under autocast
        hidden = hidden.to(weight.dtype)
    if torch.compiler.is_compiling():
        return _read_as(functional.rms_norm(hidden, weight.shape, weight, eps))
    return cheap(_rms_norm(hidden, weight, eps), _rms_norm, hidden, weight, eps)


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Off the CPU and below fp32 torch's own kernel is the better one."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32 or weight.dtype != torch.float32:
        return _read_as(functional.rms_norm(hidden, weight.shape, weight, eps))
    return _read_as(RMSNormFunction.apply(hidden, weight, eps))  # type: ignore[no-untyped-call]


def _read_as(states: Tensor) -> Tensor:
    """fp32 in the autocast type, where that is on."""
    device = states.device.type
    if states.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if torch.compiler.is_compiling():
        return functional.silu(gate) * up
    return cheap(_swiglu(gate, up), _swiglu, gate, up)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    output: Tensor = SwiGLUFunction.apply(gate, up)  # type: ignore[no-untyped-call]
    return output


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle; cosine is (c, c) and sine is (-s, s)."""
    if torch.compiler.is_compiling():
        half = states.shape[-1] // 2
        return states * cosine + torch.cat([states[..., half:], states[..., :half]], -1) * sine
    output: Tensor = RotateFunction.apply(states, cosine.to(states.dtype), sine.to(states.dtype))  # type: ignore[no-untyped-call]
    return output


def pad(rows: Tensor, index: Tensor, inverse: Tensor, again: Again = ()) -> Tensor:
    """rows[index]; see PadFunction."""
    output: Tensor = PadFunction.apply(rows, index, inverse, again)  # type: ignore[no-untyped-call]
    return output


def unpad(places: Tensor, index: Tensor) -> Tensor:
    """places[index]; see UnpadFunction."""
    output: Tensor = UnpadFunction.apply(places, index)  # type: ignore[no-untyped-call]
    return output
