"""DoRA: a weight's direction changed by LoRA, its length trained apart (Liu et al., 2024, arXiv:2402.09353, equations 5 and 11).

    y = x (c * V)^T + b        V = W + s B A: O x I,    c = m / n: O,    n = ||V||, the length of each row

m starts at the lengths of W's rows, found as n is, so c is exactly one on the device where it was made and a fresh adapter changes
nothing. n is a constant to the gradient (section 4.3), so with g the slope at y

    dx = (c g) V,    dA = s (c g B)^T x,    dB = s (c g)^T (x A^T),    dm = sum over tokens of g * (x V^T) / n.

The last needs x V^T, which is (y - b) / c: the result is kept rather than the product made again.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luyen.adapters.config import AdapterConfig
from luyen.adapters.lora import LoRALinear, low_rank, product_dtype


class DoRALinear(LoRALinear):
    """A frozen linear map whose direction changes by a product of low rank and whose rows have trained lengths."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        with torch.no_grad():
            self.lora_magnitude_vector = nn.Parameter(_lengths(self._whole(*self.factors())))

    @torch.no_grad()
    def changed(self) -> Tensor:
        """V, (O, I): a new tensor, in fp32 at least."""
        a_RI, b_OR = self.factors()
        with torch.autocast(a_RI.device.type, enabled=False):
            return self._whole(a_RI, b_OR)

    def forward(self, hidden: Tensor) -> Tensor:
        """In one product where that is exact, since V is made for its lengths in any case; else beside the map's own product."""
        dropping = self.training and self.dropout > 0
        exact = product_dtype(hidden) in (torch.float32, torch.float64) and not torch.compiler.is_compiling()
        if dropping or not exact or self.trained_too():
            return self._scaled_beside(hidden, functional.dropout(hidden, self.dropout) if dropping else hidden)
        a_RI, b_OR = self.factors()
        magnitude_O = self.lora_magnitude_vector
        output: Tensor = _Scaled.apply(hidden, a_RI, b_OR, magnitude_O, self.bias, self.scale, self._whole)  # type: ignore[no-untyped-call]
        return output

    def _scaled_beside(self, hidden: Tensor, seen: Tensor) -> Tensor:
        added = self._beside(hidden, *self.factors(), seen)
        share_O = _share(self.lora_magnitude_vector, _lengths(self.changed()))
        if self.bias is None:
            return (added * share_O).to(added.dtype)
        scaled: Tensor = added + (added - self.bias) * (share_O - 1)  # the bias is not scaled, and c = 1 changes no bit
        return scaled.to(added.dtype)

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor | None]:
        """c V in the weight's own type, from fp32 at least."""
        changed = self.changed()
        changed *= _share(self.lora_magnitude_vector, _lengths(changed))[:, None]
        weight = changed if self.compressed else changed.to(self.dense().dtype)
        return weight, None if self.bias is None else self.bias.detach().clone()


def _lengths(changed_OI: Tensor) -> Tensor:
    lengths_O: Tensor = torch.linalg.vector_norm(changed_OI, dim=1)
    return lengths_O


def _share(magnitude_O: Tensor, length_O: Tensor) -> Tensor:
    """c; one for a row of zeros, which has no direction (a pruned one)."""
    return torch.where(length_O > 0, magnitude_O / length_O, 1.0)


class _Scaled(torch.autograd.Function):
    """One product with c V. x, the factors and the result are kept: V is made again, and W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, a_RI: Tensor, b_OR: Tensor, magnitude_O: Tensor, bias_O: Tensor | None, *how: Any) -> Tensor:
        """y. `how` is s and what makes V of A and B."""
        scale, whole = how
        changed_OI = whole(a_RI, b_OR)
        length_O = _lengths(changed_OI)
        output = functional.linear(hidden, changed_OI.mul_(_share(magnitude_O, length_O)[:, None]), bias_O)
        ctx.save_for_backward(hidden, a_RI, b_OR, magnitude_O, bias_O, length_O, output)
        ctx.scale, ctx.whole = scale, whole
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """The slopes of the module's docstring, and db = sum of g."""
        hidden, a_RI, b_OR, magnitude_O, bias_O, length_O, output = ctx.saved_tensors
        needs_hidden, needs_a, needs_b, needs_magnitude, needs_bias = ctx.needs_input_grad[:5]
        hidden_NI, slope_NO = hidden.flatten(0, -2), slope.flatten(0, -2)
        share_O = _share(magnitude_O, length_O)
        changed_OI: Tensor | None = ctx.whole(a_RI, b_OR) if needs_hidden else None
        magnitude_slope_O = hidden_slope = None
        total_O = slope_NO.sum(0) if bias_O is not None else None
        if needs_magnitude:
            sums_O = (slope_NO * output.flatten(0, -2)).sum(0)
            sums_O = (sums_O if total_O is None else sums_O - total_O * bias_O) / share_O
            stopped_O = share_O == 0  # such a row's result says nothing of x V^T
            if bool(stopped_O.any()):
                changed_OI = ctx.whole(a_RI, b_OR) if changed_OI is None else changed_OI
                sums_O[stopped_O] = (slope_NO[:, stopped_O] * (hidden_NI @ changed_OI[stopped_O].T)).sum(0)
            magnitude_slope_O = torch.where(length_O > 0, sums_O / length_O, 0.0)
        scaled_NO = slope_NO * share_O
        a_slope_RI = (scaled_NO @ b_OR).T.mm(hidden_NI).mul_(ctx.scale) if needs_a else None
        b_slope_OR = scaled_NO.T.mm(hidden_NI @ a_RI.T).mul_(ctx.scale) if needs_b else None
        if needs_hidden and changed_OI is not None:
            hidden_slope = (scaled_NO @ changed_OI).view_as(hidden)
        return hidden_slope, a_slope_RI, b_slope_OR, magnitude_slope_O, total_O if needs_bias else None, None, None


def dora(model: nn.Module, config: AdapterConfig) -> None:
    """Put DoRA on the targets of a frozen model."""
    low_rank(model, config, DoRALinear)
