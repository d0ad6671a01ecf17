"""Causal attention for training on a CPU: blocks of queries by plain matrix products, with the gradient written out.

    S = Q K^T / sqrt(E)    P = softmax(S, causal)    O = P V
    dV = P^T dO    dP = dO V^T    dS = P * (dP - rowsum(P * dP))    dQ = dS K / sqrt(E)    dK = dS^T Q / sqrt(E)

A block of N queries sees the keys up to its own end only, so about half of the square is never computed, and the mask is a triangle of N x
N. With a window the keys before that of its first query are left out too, and the mask cuts both ends. The gradient is the one of
FlashAttention (Dao et al., 2022, arXiv:2205.14135, section 3.1 and appendix B.2), but P is kept instead of computed again: on a CPU its
exponentials cost more than reading it back (who listens to models/cheap.py may decide otherwise). All products are batched ones of a
library that runs at the speed of large products, where torch's own CPU kernel reaches a third of that (docs/4-engine.md has the figures).
Where the CPU has units for bf16 products the same way serves bf16: scores, P and their gradients are then bf16 between products, as under
autocast.

Shapes: B rows, T tokens, K key-value heads, G query heads of each, E head size, N queries of a block,
        M keys that a block sees, X = B K products at a time, Q = T G rows of all, R = N G rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luyen.core.device import multiplies_fast
from luyen.models.cheap import cheap

BLOCK = 64
"""Queries of a block: smaller ones make many small products, larger ones compute more of what the mask hides."""
MOST_KEPT = 1 << 25
"""Largest number of probabilities that one call keeps for its backward pass: 128 MiB in fp32."""


def fits(query_BTHE: Tensor, window: int = 0) -> bool:
    """Whether this way is the better one: training on a CPU in a type that it multiplies fast, and few enough probabilities."""
    rows, tokens, heads, _ = query_BTHE.shape
    half = (tokens + BLOCK) // 2
    seen = min(half, window + BLOCK) if window else half
    return (
        torch.is_grad_enabled()
        and query_BTHE.device.type == "cpu"
        and tokens > 0
        and multiplies_fast(_product_dtype(query_BTHE))
        and rows * heads * tokens * seen <= MOST_KEPT
    )


def block_attention(query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int = 0) -> Tensor:
    """Each row attends to its own earlier tokens, through a window above 0 to the last ones; query head h reads key-value head h // G.

    Returns (B, T, H, E).
    """
    dtype = _product_dtype(query_BTHE)
    with torch.autocast("cpu", enabled=False):
        states = (tensor.to(dtype) for tensor in (query_BTHE, key_BTKE, value_BTKE))
        output: Tensor = _BlockAttention.apply(*states, window)  # type: ignore[no-untyped-call]
    return output


def _product_dtype(states: Tensor) -> torch.dtype:
    """The type that products of these are made in here: autocast's where it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and states.dtype != torch.float64 else states.dtype


class _BlockAttention(torch.autograd.Function):
    """Both directions, block by block. Everything lies by key-value head, so a block is a slice of rows and nothing is copied for it."""

    @staticmethod
    def forward(ctx: Any, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        """O, and P of every block kept."""
        tokens, heads, kv_heads, size = *query_BTHE.shape[1:3], *key_BTKE.shape[2:]
        group = heads // kv_heads
        query_XQE = _by_head(query_BTHE, kv_heads)
        key_XTE = _by_head(key_BTKE * (1 / math.sqrt(size)), kv_heads)  # scaled here, where the numbers are fewest
        value_XTE = _by_head(value_BTKE, kv_heads)
        output_BTHE = torch.empty_like(query_BTHE, memory_format=torch.contiguous_format)
        later = _later(group, query_XQE)
        kept = []
        for block in _blocks(tokens):
            probability_XRM = _probabilities(query_XQE, key_XTE, block, later, window)
            cheap(probability_XRM, _probabilities, query_XQE, key_XTE, block, later, window)
            _put(output_BTHE[:, block], torch.bmm(probability_XRM, value_XTE[:, _keys(block, window)]), kv_heads)
            kept.append(probability_XRM)
        ctx.save_for_backward(query_XQE, key_XTE, value_XTE, *kept)
        ctx.group, ctx.window = group, window
        return output_BTHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTHE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """dQ, dK and dV from dO."""
        query_XQE, key_XTE, value_XTE, *kept = ctx.saved_tensors
        batch, tokens, heads, size = slope_BTHE.shape
        kv_heads, group = heads // ctx.group, ctx.group
        slope_XQE = _by_head(slope_BTHE, kv_heads)
        query_slope_BTHE = torch.empty_like(slope_BTHE, memory_format=torch.contiguous_format)
        key_slope_XTE = value_slope_XTE = None
        if ctx.window:  # else the last block sees all keys, and its part is what the others are added to
            key_slope_XTE, value_slope_XTE = torch.zeros_like(key_XTE), torch.zeros_like(value_XTE)
        for block, probability_XRM in reversed(list(zip(_blocks(tokens), kept, strict=True))):
            rows, keys = slice(block.start * group, block.stop * group), _keys(block, ctx.window)
            score_slope_XRM = torch.bmm(slope_XQE[:, rows], value_XTE[:, keys].mT)
            torch.ops.aten._softmax_backward_data.out(
                score_slope_XRM, probability_XRM, -1, probability_XRM.dtype, grad_input=score_slope_XRM
            )
            _put(query_slope_BTHE[:, block], torch.bmm(score_slope_XRM, key_XTE[:, keys]), kv_heads)
            # Whole products first, then a sum: a product straight into a part of a tensor falls apart into one for every head.
            key_part_XME = torch.bmm(score_slope_XRM.mT, query_XQE[:, rows])
            value_part_XME = torch.bmm(probability_XRM.mT, slope_XQE[:, rows])
            if key_slope_XTE is None or value_slope_XTE is None:
                key_slope_XTE, value_slope_XTE = key_part_XME, value_part_XME
            else:
                key_slope_XTE[:, keys] += key_part_XME
                value_slope_XTE[:, keys] += value_part_XME
        assert key_slope_XTE is not None and value_slope_XTE is not None
        key_slope_XTE *= 1 / math.sqrt(size)
        return (
            query_slope_BTHE,
            key_slope_XTE.view(batch, kv_heads, tokens, size).transpose(1, 2),
            value_slope_XTE.view(batch, kv_heads, tokens, size).transpose(1, 2),
            None,
        )


def _probabilities(query_XQE: Tensor, key_XTE: Tensor, block: slice, later: Tensor, window: int) -> Tensor:
    """P of one block, (X, R, M); `later` is the mask of a whole one without a window."""
    group = query_XQE.shape[1] // key_XTE.shape[1]
    rows, keys = slice(block.start * group, block.stop * group), _keys(block, window)
    probability_XRM = torch.bmm(query_XQE[:, rows], key_XTE[:, keys].mT)
    probability_XRM[:, :, block.start - keys.start :] += later[: rows.stop - rows.start, : block.stop - block.start]
    if window:
        positions_R = torch.arange(block.start, block.stop, device=later.device).repeat_interleave(group)
        positions_M = torch.arange(keys.start, keys.stop, device=later.device)
        probability_XRM.masked_fill_(positions_M <= positions_R[:, None] - window, -math.inf)
    return torch.softmax(probability_XRM, -1, out=probability_XRM)


def _keys(block: slice, window: int) -> slice:
    """The keys that some query of the block sees."""
    return slice(max(0, block.start - window + 1) if window else 0, block.stop)


def _blocks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, BLOCK):
        yield slice(start, min(start + BLOCK, tokens))


def _by_head(states_BTHE: Tensor, kv_heads: int) -> Tensor:
    """(B K, T G, E), contiguous: the query heads of one key-value head become rows of one product, those of a token side by side."""
    rows, tokens, heads, size = states_BTHE.shape
    states_BTKGE = states_BTHE.reshape(rows, tokens, kv_heads, heads // kv_heads, size)
    return states_BTKGE.transpose(1, 2).reshape(rows * kv_heads, -1, size)


def _put(target_BNHE: Tensor, states_XRE: Tensor, kv_heads: int) -> None:
    """The inverse of `_by_head` for the tokens of one block, written into `target_BNHE`."""
    rows, tokens, heads, size = target_BNHE.shape
    states_BKNGE = states_XRE.view(rows, kv_heads, tokens, heads // kv_heads, size)
    target_BNHE.view(rows, tokens, kv_heads, -1, size).copy_(states_BKNGE.transpose(1, 2))


def _later(group: int, like: Tensor) -> Tensor:
    """(R, N) of a whole block: -inf where the key comes after the query; every query stands there `group` times."""
    mask_NN = torch.full((BLOCK, BLOCK), -math.inf, dtype=like.dtype, device=like.device).triu_(1)
    return mask_NN.repeat_interleave(group, 0)
