"""Causal attention over packed sequences on a GPU: FlashAttention's kernel for sequences of any lengths, where torch has it.

It reads from the bounds where each sequence begins (Dao, 2023, arXiv:2307.08691), so all sequences are one launch, nothing is padded, and
the sequences of a batch make no shapes that a GPU has not seen. It is torch.nn.attention.varlen: half precision only, no CPU, no compiler.
FlexAttention could express the same mask, but it needs the compiler for a GPU and has no gradient on a CPU.

Shapes: T tokens, H query heads, K key-value heads, E head size; Z = sequences + 1 bounds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST_HEAD = 192
"""Of the sizes, which are multiples of 8, those that have a gradient on every GPU."""
OLDEST = (8, 0)
"""Compute capability of the first GPUs with the kernel (Ampere)."""
CAUSAL = (-1, 0)
"""The window of a query: everything before it, nothing after it."""
NEEDED = frozenset({"scale", "window_size", "enable_gqa"})
"""Arguments that came to torch's function after its first version; without them causal attention with grouped heads cannot be asked for."""


def takes(query_THE: Tensor) -> bool:
    """Whether the kernel is there for these queries: a GPU with it, half precision (autocast's, where that is on), a head size it knows."""
    size = query_THE.shape[-1]
    return (
        query_THE.device.type == "cuda"
        and computed_in(query_THE) in (torch.bfloat16, torch.float16)
        and size % 8 == 0
        and size <= LARGEST_HEAD
        and _has_units(query_THE.device)
        and kernel() is not None
    )


def varlen_attention(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, bounds_Z: Tensor, longest: int, window: int = 0) -> Tensor:
    """Each sequence attends to its own earlier tokens, through a window above 0 to its last ones.

    `bounds_Z` (int32) are the first tokens of the sequences and the end. Returns (T, H, E) in half.
    """
    attention, dtype = kernel(), computed_in(query_THE)
    assert attention is not None, "asked for only where `takes` says so"
    before = (window - 1, 0) if 0 < window < longest else CAUSAL  # the kernel does not count the query itself
    attended_THE: Tensor = attention(
        query_THE.to(dtype), key_TKE.to(dtype), value_TKE.to(dtype), bounds_Z, bounds_Z, longest, longest,
        scale=query_THE.shape[-1] ** -0.5, window_size=before, enable_gqa=query_THE.shape[1] != key_TKE.shape[1],
    )  # fmt: skip
    return attended_THE


def computed_in(states: Tensor) -> torch.dtype:
    """The type of products with these states: autocast's where it is on, which knows torch's own functions but not this kernel."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


@functools.cache
def kernel() -> Callable[..., Any] | None:
    """torch's function; None where this torch has none, or one of before NEEDED."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # a second that who has no GPU need not spend
    except ImportError:
        return None
    return varlen_attn if inspect.signature(varlen_attn).parameters.keys() >= NEEDED else None


@functools.cache
def _has_units(device: torch.device) -> bool:
    """Whether torch was built with the kernel and this GPU runs it."""
    built = torch.backends.cuda.is_flash_attention_available() and torch.version.hip is None
    return built and torch.cuda.get_device_capability(device) >= OLDEST
