"""A frozen base in 4 or 8 bits, which adapters are trained on (QLoRA, Dettmers et al., 2023, arXiv:2305.14314, section 3).

    W ~ code[q] * c,   q = nearest code of W / c,   c = max |W| over each block of 64 weights in reading order

nf4:  16 codes at quantiles of the normal distribution (equation 4), so that weights fall on them about equally often.
fp4:  16 codes of one sign, two exponent bits and one of mantissa.
int8: 255 evenly spaced codes. (bitsandbytes' own "dynamic" 8 bits were made for gradients; on normal weights they err 1.6 times as much.)

Double quantization: the block scales themselves are held in 8 bits, less their mean and with one scale for 256 of them, so that a weight
takes 4.127 bits instead of 4.5. The codes are those of bitsandbytes, which counts and reads them (the extra `qlora`).

What is held is bytes, the few fp32 scales too: no cast of the model changes them and nothing can train them. Embeddings, head, norms and
the routers of a mixture stay in numbers. A product reads the codes into numbers, multiplies and forgets them, in backward once more.

Shapes: N tokens, I inputs, O outputs, K blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luyen.adapters.linear import replace_each
from luyen.adapters.lora import product_dtype
from luyen.adapters.targets import ROUTER, linear_maps
from luyen.core import low_bits
from luyen.core.errors import ModelError

Kind = Literal["nf4", "fp4", "int8"]
BLOCK, SCALES_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one of theirs."""
CODED = ("codes", "scales", "scales_scales", "mean")
"""What a quantized map holds in the place of its weight."""
PIECE = 1 << 18
"""Weights that are quantized at once: bounds what that takes beside the map itself."""


class QuantizedLinear(nn.Module):
    """A linear map whose weight is held in 4 or 8 bits."""

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None, kind: Kind = "nf4", double_quantization: bool = True) -> None:
        """Raises ModelError for a weight that is not finite, ConfigError where bitsandbytes is not installed."""
        super().__init__()
        weight_OI = weight_OI.detach()
        self.kind, self.double_quantization = kind, double_quantization
        self.out_features, self.in_features = weight_OI.shape
        codes, scales = _quantized(weight_OI, kind)
        if not scales.is_meta and not scales.isfinite().all():
            raise ModelError("a weight that is to be quantized is not finite", fix="Check the model: luyen doctor, or its own training.")
        self.codes = _held(codes)
        if double_quantization:
            coded, scales_scales, mean = _quantized_scales(scales)
            self.scales, self.scales_scales, self.mean = _held(coded), _held(scales_scales), _held(mean)
        else:
            self.scales = _held(scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.instead: Callable[[], Tensor] | None = None
        """Reads another weight in place of this one, for a comparison."""
        self.error = 0.0 if weight_OI.is_meta else self._relative_error(weight_OI)
        """How far the numbers are from those that were given: |W - W'| / |W|."""
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_back)  # type: ignore[no-untyped-call]

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight in numbers, (O, I), fp32 unless told otherwise: a new tensor, which the caller may change."""
        if self.instead is not None:
            return self.instead().to(self.codes.device, dtype or torch.float32, copy=True)
        count = self.out_features * self.in_features
        read = _numbers(self.codes.detach(), self.block_scales(), self.kind, dtype or torch.float32)
        return read[:count].view(self.out_features, self.in_features)

    def block_scales(self) -> Tensor:
        """The scale of each block, (K), fp32."""
        scales = self.scales.detach()
        if not self.double_quantization:
            return scales.view(torch.float32)
        read: Tensor = _library().dequantize_blockwise(
            scales, absmax=self.scales_scales.detach().view(torch.float32), blocksize=SCALES_BLOCK
        )
        return read.add_(self.mean.detach().view(torch.float32))

    def _relative_error(self, weight_OI: Tensor) -> float:
        off = size = 0.0
        for piece, codes, scales in _pieces(weight_OI, self.codes.detach(), self.block_scales()):
            read = _numbers(codes, scales, self.kind, torch.float32)[: piece.numel()]
            size += float(torch.linalg.vector_norm(piece, dtype=torch.float32)) ** 2
            off += float(torch.linalg.vector_norm(read.sub_(piece))) ** 2
        return float((off / size) ** 0.5) if size else 0.0

    def nbytes(self) -> int:
        """What the weight takes."""
        return sum(parameter.nbytes for parameter in self.parameters() if parameter is not self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """x W^T + b, in the type that autocast asks for."""
        dtype = product_dtype(hidden)
        bias = None if self.bias is None else self.bias.to(dtype)
        output: Tensor = _Product.apply(hidden.to(dtype), self.dense, bias)  # type: ignore[no-untyped-call]
        return output

    def extra_repr(self) -> str:
        """For print."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """x W^T + b of a frozen W that is read anew in backward: dx = g W, db = sum of g. Nothing is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, dense: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
        ctx.dense = dense
        return functional.linear(hidden, dense(hidden.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        hidden_slope = slope @ ctx.dense(slope.dtype) if ctx.needs_input_grad[0] else None
        return hidden_slope, None, slope.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None


def quantize(model: nn.Module, kind: Kind = "nf4", double_quantization: bool = True, names: Iterable[str] | None = None) -> None:
    """Hold the linear maps of a model's layers (or the named ones) in 4 or 8 bits, in place, one after another.

    A map's numbers are freed as soon as its codes are made, if nobody else holds them.
    """

    def make(name: str, module: nn.Module) -> nn.Module:
        return quantized_map(name, cast(Tensor, module.weight), cast("Tensor | None", module.bias), kind, double_quantization)

    replace_each(model, compressible(model) if names is None else list(names), make)


def dequantize(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Put a plain linear map with the numbers that the codes say in the place of each quantized one, in place; it is frozen."""

    def make(_: str, module: nn.Module) -> nn.Module:
        coded = cast(QuantizedLinear, module)
        plain = nn.Linear(coded.in_features, coded.out_features, bias=coded.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(coded.dense(dtype), requires_grad=False), cast(Any, coded.bias)
        return plain

    replace_each(model, [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)], make)


def count_weights(model: nn.Module) -> int:
    """Numbers that a model is made of, however they are held; the bytes of codes do not count."""
    coded = {id(module): module for module in model.modules() if isinstance(module, QuantizedLinear)}
    held = {id(parameter) for module in coded.values() for parameter in module.parameters() if parameter is not module.bias}
    plain = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in held)
    return plain + sum(module.in_features * module.out_features for module in coded.values())


def quantized_map(name: str, weight_OI: Tensor, bias: Tensor | None, kind: Kind, double_quantization: bool) -> QuantizedLinear:
    """One map. ModelError, with its name, for a weight that is not finite."""
    try:
        return QuantizedLinear(weight_OI, bias, kind, double_quantization)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def compressible(model: nn.Module) -> list[str]:
    """Names of the maps that `quantize` takes: all in the layers but the routers of a mixture and what is compressed already."""
    return [name for name in linear_maps(model) if name.rpartition(".")[2] != ROUTER and isinstance(model.get_submodule(name), nn.Linear)]


def quantized_maps(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """All quantized maps, by the name that the map had in the plain model."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))
    return ((name.removesuffix(".base"), module) for name, module in found)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Codes are made from the base's own folder again, so neither a checkpoint nor an adapter's file holds them."""
    for name in CODED:
        state.pop(prefix + name, None)


def _put_back(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """What is loaded leaves the codes as they are."""
    for name, parameter in module.named_parameters():
        if name in CODED:
            state.setdefault(prefix + name, parameter)


def _held(values: Tensor) -> nn.Parameter:
    """As bytes, frozen."""
    return nn.Parameter(values.contiguous().view(torch.uint8), requires_grad=False)


def _quantized(weight_OI: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Codes, two to a byte below 8 bits, and the scale of each block. The last block is filled with zeros.

    What stays is asked for before what is freed again: else small gaps in memory would add up to more than the model.
    """
    blocks, each = -(-weight_OI.numel() // BLOCK), BLOCK // (1 if kind == "int8" else 2)
    codes, scales = weight_OI.new_empty(blocks * each, dtype=torch.uint8), weight_OI.new_empty(blocks, dtype=torch.float32)
    if weight_OI.is_meta:
        return codes, scales
    for piece, codes_of, scales_of in _pieces(weight_OI, codes, scales):
        numbers = functional.pad(piece.float(), (0, -piece.numel() % BLOCK))
        if kind == "int8":
            found, state = _library().quantize_blockwise(numbers, code=_even_codes(numbers.device), blocksize=BLOCK)
        else:
            found, state = _library().quantize_4bit(numbers, blocksize=BLOCK, quant_type=kind)
        codes_of.copy_(found.flatten())
        scales_of.copy_(state.absmax)
    return codes, scales


def _pieces(weight_OI: Tensor, codes: Tensor, scales_K: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weights in reading order, PIECE at a time, with their codes and scales."""
    each = codes.numel() // scales_K.numel()
    return zip(
        torch.split(weight_OI.flatten(), PIECE),
        torch.split(codes, PIECE // BLOCK * each),
        torch.split(scales_K, PIECE // BLOCK),
        strict=True,
    )  # fmt: skip


def _quantized_scales(scales_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the scales less their mean, the scales of these, and the mean."""
    mean = scales_K.mean()[None]
    if scales_K.is_meta:
        count = -(-scales_K.numel() // SCALES_BLOCK)
        return torch.empty_like(scales_K, dtype=torch.uint8), scales_K.new_empty(count), mean
    coded, state = _library().quantize_blockwise(scales_K - mean, blocksize=SCALES_BLOCK)
    return coded, state.absmax, mean


def _numbers(codes: Tensor, scales_K: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """The weights in reading order.

    Read as K rows of one block: with rows of a width that is a multiple of 16 but not of the block, bitsandbytes 0.50 takes wrong scales
    on a processor with AVX-512.
    """
    library = _library()
    read_as = dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
    shape = (scales_K.numel(), BLOCK)
    if kind == "int8":
        state = library.QuantState(scales_K, code=_even_codes(codes.device), blocksize=BLOCK, dtype=read_as)
        read: Tensor = library.dequantize_blockwise(codes, state)
    else:
        state = library.QuantState(scales_K, shape=shape, blocksize=BLOCK, quant_type=kind, dtype=read_as)
        read = library.dequantize_4bit(codes[:, None], state)
    return read.flatten().to(dtype)


@functools.cache
def _even_codes(device: torch.device) -> Tensor:
    """Table of the 8-bit codes: -1 to 1 in 255 even steps (one of 256 stands twice, at zero)."""
    table: Tensor = _library().create_linear_map(signed=True, total_bits=8)
    return table.to(device)


@functools.cache
def _library() -> Any:
    return low_bits.library("quantize", "a number of bits", "take quantize=none").functional
