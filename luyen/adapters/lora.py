"""LoRA: low-rank adaptation of a frozen linear map (Hu et al., 2021, arXiv:2106.09685, section 4.1).

    y = x (W + s B A)^T + b        A: r x I,  B: O x r,  s = alpha / r

With rsLoRA s = alpha / sqrt(r) (Kalajdzievski, 2023, arXiv:2312.03732, theorem 3.2). B starts at zero, so a fresh adapter changes nothing.
PiSSA (Meng et al., 2024, arXiv:2404.02948, equations 2 to 4) starts A and B at the largest singular values and trains the weight without
them; here the weight stays, and the product that they start with is subtracted beside it: W + s (B A - B0 A0).

In fp32 the small product is added to the weight and one large product made, which on a CPU costs less than two narrow ones beside it. In
half precision they are kept apart: beside a weight of three digits a small change would be lost.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import AdaptedLinear, replace_each
from luyen.adapters.targets import by_pattern, targets
from luyen.core.errors import ConfigError

FEW = 64
"""Tokens up to which two narrow products cost less than adding to the whole weight."""


class LoRALinear(AdaptedLinear):
    """A frozen linear map with a trained change of low rank."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        like = next(base.parameters())
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, device=like.device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=like.device, dtype=dtype))
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        self.scale, self.dropout = scale, dropout
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.lora_A.shape[0]

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of the whole change s B A, with what it started from taken off where that was not zero."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """In one product or beside the map's own, whichever is exact and costs less."""
        a_RI, b_OR = self.factors()
        dtype = product_dtype(hidden)
        dropping = self.training and self.dropout > 0
        exact = dtype in (torch.float32, torch.float64)
        if dropping or torch.compiler.is_compiling() or self.trained_too() or (exact and hidden.numel() <= FEW * self.in_features):
            return self._beside(hidden, a_RI, b_OR, functional.dropout(hidden, self.dropout) if dropping else hidden)
        output: Tensor
        if exact:
            output = _Folded.apply(hidden, a_RI, b_OR, self.scale, self._whole, self.bias)  # type: ignore[no-untyped-call]
        elif self.compressed or type(self.base) is nn.Linear:
            bias = None if self.bias is None else self.bias.to(dtype)
            output = _Apart.apply(hidden.to(dtype), a_RI, b_OR, self.scale, self.dense, bias)  # type: ignore[no-untyped-call]
        else:
            output = self._beside(hidden, a_RI, b_OR, hidden)
        return output

    def trained_too(self) -> bool:
        """Whether the map's own weight is trained beside the adapter (`also`); it needs its own product then."""
        return not self.compressed and cast(Tensor, self.base.weight).requires_grad

    def _whole(self, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        """W + s B A, a new tensor: a compressed weight is one already."""
        weight = self.dense(a_RI.dtype)
        return torch.addmm(weight, b_OR, a_RI, alpha=self.scale, out=weight if self.compressed else None)

    def _beside(self, hidden: Tensor, a_RI: Tensor, b_OR: Tensor, seen: Tensor) -> Tensor:
        whole, dtype = self.base(hidden), product_dtype(seen)
        narrow = functional.linear(functional.linear(seen, a_RI.to(dtype)), b_OR.to(dtype))
        added: Tensor = torch.add(whole, narrow, alpha=self.scale)
        return added

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor | None]:
        """W + s B A in the weight's own type, added in fp32 at least."""
        weight = self.dense()
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=not self.compressed)
        a_RI, b_OR = self.factors()
        exact.addmm_(b_OR.to(exact.dtype), a_RI.to(exact.dtype), alpha=self.scale)
        return exact.to(weight.dtype), None if self.bias is None else self.bias.detach().clone()


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type that a product with these inputs is made in."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _Folded(torch.autograd.Function):
    """One product with W' = W + s B A. Only x and the factors are kept: W' is made again, and W gets no gradient.

    dx = g W',  dA = s (g B)^T x,  dB = s g^T (x A^T),  db = sum of g.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, whole: Callable[[Tensor, Tensor], Tensor], bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, a_RI, b_OR)
        ctx.scale, ctx.whole = scale, whole
        return functional.linear(hidden, whole(a_RI, b_OR), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, Tensor | None]:
        hidden, a_RI, b_OR = ctx.saved_tensors
        slope_NO, hidden_NI = slope.flatten(0, -2), hidden.flatten(0, -2)
        needs_hidden, needs_a, needs_b = ctx.needs_input_grad[:3]
        a_slope_RI = (slope_NO @ b_OR).T.mm(hidden_NI).mul_(ctx.scale) if needs_a else None
        b_slope_OR = slope_NO.T.mm(hidden_NI @ a_RI.T).mul_(ctx.scale) if needs_b else None
        hidden_slope = slope @ ctx.whole(a_RI, b_OR) if needs_hidden else None
        return hidden_slope, a_slope_RI, b_slope_OR, None, None, slope_NO.sum(0) if ctx.needs_input_grad[5] else None


class _Apart(torch.autograd.Function):
    """x W^T + b and s (x A^T) B^T, each added to the other as it is made. W in the type of the product and what is between A and B are
    made again in backward, and W gets no gradient; the formulas are those of `_Folded`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, dense: Callable[[torch.dtype], Tensor], bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, a_RI, b_OR)
        ctx.scale, ctx.dense = scale, dense
        output = functional.linear(hidden, dense(hidden.dtype), bias)
        output.flatten(0, -2).addmm_(hidden.flatten(0, -2) @ a_RI.to(hidden.dtype).T, b_OR.to(hidden.dtype).T, alpha=scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, Tensor | None]:
        """Gradients of the factors are in their own type, as autocast's are."""
        hidden, a_RI, b_OR = ctx.saved_tensors
        a, b = a_RI.to(slope.dtype), b_OR.to(slope.dtype)
        slope_NO, hidden_NI = slope.flatten(0, -2), hidden.flatten(0, -2)
        needs_hidden, needs_a, needs_b = ctx.needs_input_grad[:3]
        inner_NR = slope_NO @ b if needs_hidden or needs_a else None
        a_slope_RI = inner_NR.T.mm(hidden_NI).to(a_RI.dtype).mul_(ctx.scale) if needs_a and inner_NR is not None else None
        b_slope_OR = slope_NO.T.mm(hidden_NI @ a.T).to(b_OR.dtype).mul_(ctx.scale) if needs_b else None
        hidden_slope = None
        if needs_hidden and inner_NR is not None:
            hidden_slope = slope_NO @ ctx.dense(slope.dtype)
            hidden_slope = hidden_slope.addmm_(inner_NR, a, alpha=ctx.scale).view_as(hidden)
        return hidden_slope, a_slope_RI, b_slope_OR, None, None, slope_NO.sum(0) if ctx.needs_input_grad[5] else None


def lora(model: nn.Module, config: AdapterConfig) -> None:
    """Put LoRA on the targets of a frozen model."""
    low_rank(model, config, LoRALinear)


def low_rank(model: nn.Module, config: AdapterConfig, kind: type[LoRALinear]) -> None:
    """Put a kind of LoRA on the targets. ConfigError for a rank that is larger than a matrix."""
    names = targets(model, config.targets)
    ranks = by_pattern(config.lora.ranks, names, config.rank, "adapter.lora.ranks")
    alphas = by_pattern(config.lora.alphas, names, config.alpha, "adapter.lora.alphas")

    def make(name: str, base: nn.Module) -> LoRALinear:
        """The adapter of one map, with the rank and alpha that its name has."""
        smaller = min(cast(int, base.in_features), cast(int, base.out_features))
        if ranks[name] > smaller:
            raise ConfigError("adapter.rank", found=f"{ranks[name]} for {name}", expected=f"at most {smaller}, its smaller side",
                              fix="Set a smaller rank, or one for these modules in adapter.lora.ranks.")  # fmt: skip
        scale = alphas[name] / (math.sqrt(ranks[name]) if config.lora.scaling == "root" else ranks[name])
        made = kind(base, ranks[name], scale, config.dropout)
        INITS[config.lora.init](made)
        return made

    replace_each(model, names, make)


def _default(module: LoRALinear) -> None:
    """As made: A uniform as torch's linear maps are (Kaiming, a = sqrt 5), B zero."""


@torch.no_grad()
def _pissa(module: LoRALinear) -> None:
    """W = U S V^T: B = U_r sqrt(S_r / s), A = sqrt(S_r / s) V_r^T; both are remembered as the start."""
    left, values, right = torch.linalg.svd(module.dense(torch.float32), full_matrices=False)
    root = (values[: module.rank] / module.scale).sqrt()
    module.lora_A.copy_(root[:, None] * right[: module.rank])
    module.lora_B.copy_(left[:, : module.rank] * root)
    module.start_A, module.start_B = module.lora_A.detach().clone(), module.lora_B.detach().clone()


@torch.no_grad()
def _orthogonal(module: LoRALinear) -> None:
    """Rows of one random orthogonal R x R matrix, the even ones for B and the odd ones for A, so that B A = 0."""
    rank = module.rank
    if rank % 2:
        raise ConfigError("adapter.lora.init", found=f"orthogonal with rank {rank}", expected="an even rank")
    rows, _ = torch.linalg.qr(torch.randn(rank, rank))
    odd, even = rows[0::2].to(module.lora_A), rows[1::2].to(module.lora_A)
    left = torch.randn(module.in_features, rank // 2).to(odd) / 10
    right = torch.randn(rank // 2, module.out_features).to(odd) / 10
    module.lora_A.copy_((left @ odd).T)
    module.lora_B.copy_((even.T @ right).T)


INITS: dict[str, Callable[[LoRALinear], None]] = {"default": _default, "pissa": _pissa, "orthogonal": _orthogonal}
