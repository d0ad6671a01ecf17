"""Causal attention for training on a CPU: blocks of queries by plain matrix products, with the gradient written out.

    S = Q K^T / sqrt(E)    P = softmax(S, causal)    O = P V
    dV = P^T dO    dP = dO V^T    dS = P * (dP - rowsum(P * dP))    dQ = dS K / sqrt(E)    dK = dS^T Q / sqrt(E)

A block of N queries sees the keys up to its own end only, so about half of the square is never computed, and the mask is a triangle
of N x N. The gradient is the one of FlashAttention (Dao et al., 2022, arXiv:2205.14135, section 3.1 and appendix B.2), but P is kept
instead of computed again: on a CPU its exponentials cost more than reading it back. All products are batched ones of a library that
runs at the speed of large products, where torch's own CPU kernel reaches a third of that (docs/4-engine.md has the figures).

Shapes: B rows, T tokens, K key-value heads, G query heads of each, E head size, N queries of a block,
        M keys that a block sees, X = B K products at a time, R = N G rows of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries of a block: smaller ones make many small products, larger ones compute more of what the mask hides."""
MOST_KEPT = 1 << 25
"""Largest number of probabilities that one call keeps for its backward pass: 128 MiB in fp32."""


def fits(query_BTHE: Tensor) -> bool:
    """Whether this way is the better one: training in fp32 or fp64 on a CPU, with rows of a length whose probabilities can be kept."""
    rows, tokens, heads, _ = query_BTHE.shape
    return (
        torch.is_grad_enabled()
        and query_BTHE.device.type == "cpu"
        and query_BTHE.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and rows * heads * tokens * (tokens + BLOCK) // 2 <= MOST_KEPT
    )


def block_attention(query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor) -> Tensor:
    """Each row attends to its own earlier tokens; query head h reads key-value head h // G. Returns (B, T, H, E)."""
    output: Tensor = _BlockAttention.apply(query_BTHE, key_BTKE, value_BTKE)  # type: ignore[no-untyped-call]
    return output


class _BlockAttention(torch.autograd.Function):
    """Both directions, block by block."""

    @staticmethod
    def forward(ctx: Any, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor) -> Tensor:
        """O, and P of every block kept."""
        rows, tokens, _, size = query_BTHE.shape
        kv_heads = key_BTKE.shape[2]
        query_BTKGE = _grouped(query_BTHE, kv_heads)
        key_XTE = _by_head(key_BTKE * (1 / math.sqrt(size)))  # scaled here, where the numbers are fewest
        value_XTE = _by_head(value_BTKE)
        output_BTKGE = query_BTKGE.new_empty(query_BTKGE.shape)
        kept = []
        for block in _blocks(tokens):
            probability_XRM = torch.bmm(_rows(query_BTKGE[:, block]), key_XTE[:, : block.stop].mT)
            _hide_later(probability_XRM[:, :, block.start :], query_BTKGE.shape[3])
            torch.softmax(probability_XRM, -1, out=probability_XRM)
            output_BTKGE[:, block] = _unrows(torch.bmm(probability_XRM, value_XTE[:, : block.stop]), query_BTKGE[:, block])
            kept.append(probability_XRM)
        ctx.save_for_backward(query_BTHE, key_XTE, value_XTE, *kept)
        return output_BTKGE.flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTHE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dQ, dK and dV from dO."""
        query_BTHE, key_XTE, value_XTE, *kept = ctx.saved_tensors
        rows, tokens, _, size = query_BTHE.shape
        kv_heads = key_XTE.shape[0] // rows
        query_BTKGE, slope_BTKGE = (_grouped(states, kv_heads) for states in (query_BTHE, slope_BTHE))
        query_slope_BTKGE = query_BTKGE.new_empty(query_BTKGE.shape)
        key_slope_XTE = value_slope_XTE = None
        for block, probability_XRM in reversed(list(zip(_blocks(tokens), kept, strict=True))):
            query_XRE, slope_XRE = _rows(query_BTKGE[:, block]), _rows(slope_BTKGE[:, block])
            score_slope_XRM = torch.bmm(slope_XRE, value_XTE[:, : block.stop].mT)
            torch.ops.aten._softmax_backward_data.out(
                score_slope_XRM, probability_XRM, -1, probability_XRM.dtype, grad_input=score_slope_XRM
            )
            query_slope_BTKGE[:, block] = _unrows(torch.bmm(score_slope_XRM, key_XTE[:, : block.stop]), query_BTKGE[:, block])
            # Whole products first, then a sum: a product straight into a part of a tensor falls apart into one for every head.
            key_part_XME = torch.bmm(score_slope_XRM.mT, query_XRE)
            value_part_XME = torch.bmm(probability_XRM.mT, slope_XRE)
            if key_slope_XTE is None or value_slope_XTE is None:  # the last block sees all keys
                key_slope_XTE, value_slope_XTE = key_part_XME, value_part_XME
            else:
                key_slope_XTE[:, : block.stop] += key_part_XME
                value_slope_XTE[:, : block.stop] += value_part_XME
        assert key_slope_XTE is not None and value_slope_XTE is not None
        key_slope_XTE *= 1 / math.sqrt(size)
        return (
            query_slope_BTKGE.flatten(2, 3),
            key_slope_XTE.view(rows, kv_heads, tokens, size).transpose(1, 2),
            value_slope_XTE.view(rows, kv_heads, tokens, size).transpose(1, 2),
        )


def _blocks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, BLOCK):
        yield slice(start, min(start + BLOCK, tokens))


def _grouped(states_BTHE: Tensor, kv_heads: int) -> Tensor:
    """(B, T, K, G, E)."""
    rows, tokens, heads, size = states_BTHE.shape
    return states_BTHE.reshape(rows, tokens, kv_heads, heads // kv_heads, size)


def _by_head(states_BTKE: Tensor) -> Tensor:
    """(B K, T, E), contiguous."""
    return states_BTKE.transpose(1, 2).flatten(0, 1).contiguous()


def _rows(states: Tensor) -> Tensor:
    """(B, N, K, G, E) as (B K, N G, E): the query heads of one key-value head become rows of one product."""
    return states.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)


def _unrows(states_XRE: Tensor, like_BNKGE: Tensor) -> Tensor:
    """The inverse of `_rows`, as a view."""
    rows, tokens, kv_heads, group, _ = like_BNKGE.shape
    return states_XRE.view(rows, kv_heads, tokens, group, -1).permute(0, 2, 1, 3, 4)


def _hide_later(scores_XRN: Tensor, group: int) -> None:
    """-inf for keys after the query, in a block's own columns; every query stands there `group` times."""
    tokens = scores_XRN.shape[2]
    mask_NN = torch.full((tokens, tokens), -math.inf, dtype=scores_XRN.dtype).triu_(1)
    scores_XRN += mask_NN.repeat_interleave(group, 0)
