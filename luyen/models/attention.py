"""Causal attention over packed sequences, with grouped key-value heads.

    attention(q, k, v) = softmax(q k^T / sqrt(E) + causal mask) v        (Vaswani et al., 2017, equation 1)

Query head h reads key-value head h // (H / K) (grouped-query attention, Ainslie et al., 2023, arXiv:2305.13245). With a window w a query
sees itself and the w - 1 tokens before it (Jiang et al., 2023, arXiv:2310.06825, section 2); 0 is no window.

Shapes: B rows, T tokens, H query heads, K key-value heads, E head size;
        S sequences of a group, L tokens of its longest, P = sum of S * L over the groups; Z = all sequences + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from luyen.core.device import to_device
from luyen.models import varlen
from luyen.models.block_attention import block_attention, fits
from luyen.models.functions import pad, unpad

GROUP_OVERHEAD = 60_000.0
"""What one more group costs, in units of one query-key pair (about 100 us against 1.6 ns on a CPU core)."""
TOKEN_OVERHEAD = 200.0
"""What one padded token costs besides its query-key pairs, in the same unit."""


class Cache(Protocol):
    """What a decoder layer asks of a key-value cache: it keeps the new keys and values and attends over all."""

    @property
    def positions_BT(self) -> Tensor:
        """Positions of the tokens now in the model."""

    def attend(self, layer: int, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        """Store the new (rotated) keys and the values of `layer`; return what the queries see in their window, (B, T, H, E)."""


@dataclass(frozen=True)
class Group:
    """Sequences of similar length: `rows` of them, each padded on the right to `length`."""

    rows: int
    length: int


@dataclass(frozen=True)
class Grids:
    """How attention by plain products groups the sequences of a layout.

    Sequences of similar length form a grid padded on the right. With a causal mask no real query sees padding, so
    nothing needs masking and the result is that of each sequence alone.
    """

    groups: tuple[Group, ...]
    gather_P: Tensor | None
    """Flat token that stands at each place of the padded grids; None when the flat tokens already are one grid."""
    scatter_T: Tensor | None
    """Place of each flat token in the padded grids."""


@dataclass(frozen=True)
class Layout:
    """Where the independent sequences lie in a flat run of tokens.

    Everything is worked out on the host from the lengths, what only some ways of attention need when it is first asked for.
    """

    lengths: tuple[int, ...]
    positions_T: Tensor
    """Position of each token in its own sequence, int64."""

    @staticmethod
    def packed(lengths: Sequence[int], device: torch.device | str | None = None) -> Layout:
        """Consecutive sequences of these lengths, each blind to the others, with positions from 0. Lengths are > 0."""
        sizes = numpy.asarray(lengths, dtype=numpy.int64)
        if sizes.ndim != 1 or sizes.size == 0 or sizes.min() < 1:
            raise ValueError(f"lengths must be positive, found {list(lengths)}")
        starts = numpy.cumsum(sizes) - sizes
        positions = numpy.arange(int(sizes.sum())) - numpy.repeat(starts, sizes)
        return Layout(tuple(sizes.tolist()), to_device(torch.from_numpy(positions), device))

    @cached_property
    def last_S(self) -> Tensor:
        """Flat index of the last token of each sequence, int64."""
        return self._placed(numpy.cumsum(self.lengths, dtype=numpy.int64) - 1)

    @cached_property
    def bounds_Z(self) -> Tensor:
        """Flat index of the first token of each sequence and the end of the last, int32."""
        return self._placed(numpy.cumsum((0, *self.lengths), dtype=numpy.int32))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def grids(self) -> Grids:
        """The groups of least total cost."""
        sizes = numpy.asarray(self.lengths, dtype=numpy.int64)
        if (sizes == sizes[0]).all():
            return Grids((Group(sizes.size, int(sizes[0])),), None, None)
        starts = numpy.cumsum(sizes) - sizes
        order = numpy.argsort(sizes, kind="stable")
        groups, gathers, scatter, offset = [], [], numpy.empty(int(sizes.sum()), dtype=numpy.int64), 0
        for members in _similar(sizes, order):
            length = int(sizes[members[-1]])
            column = numpy.arange(length)
            # A place beyond a sequence's end repeats its last token; nothing reads what comes out there.
            grid = starts[members][:, None] + numpy.minimum(column, sizes[members][:, None] - 1)
            real = column < sizes[members][:, None]
            scatter[grid[real]] = offset + numpy.flatnonzero(real)
            groups.append(Group(len(members), length))
            gathers.append(grid.reshape(-1))
            offset += grid.size
        return Grids(tuple(groups), self._placed(numpy.concatenate(gathers)), self._placed(scatter))

    def _placed(self, numbers: numpy.ndarray[Any, Any]) -> Tensor:
        return to_device(torch.from_numpy(numbers), self.positions_T.device)


def _similar(sizes: numpy.ndarray[Any, Any], order: numpy.ndarray[Any, Any]) -> list[numpy.ndarray[Any, Any]]:
    """Split `order` (indices by growing size) into the groups of least total cost, by dynamic programming over distinct sizes."""
    distinct, counts = numpy.unique(sizes, return_counts=True)
    before = numpy.concatenate([[0], numpy.cumsum(counts)])
    best, cut = numpy.zeros(len(distinct) + 1), numpy.zeros(len(distinct) + 1, dtype=numpy.int64)
    for end in range(1, len(distinct) + 1):
        length = float(distinct[end - 1])
        members = before[end] - before[:end]
        cost = best[:end] + GROUP_OVERHEAD + members * length * (length + TOKEN_OVERHEAD)
        cut[end] = cost.argmin()
        best[end] = cost[cut[end]]
    groups, end = [], len(distinct)
    while end:
        groups.append(order[before[cut[end]] : before[end]])
        end = int(cut[end])
    return groups[::-1]


def causal_attention(query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int = 0) -> Tensor:
    """Each row attends to its own earlier tokens. Returns (B, T, H, E)."""
    tokens = query_BTHE.shape[1]
    window = window if window < tokens else 0
    if fits(query_BTHE, window):
        return block_attention(query_BTHE, key_BTKE, value_BTKE, window)
    attended = functional.scaled_dot_product_attention(
        query_BTHE.transpose(1, 2),
        key_BTKE.transpose(1, 2),
        value_BTKE.transpose(1, 2),
        attn_mask=seen(tokens, tokens, window, query_BTHE.device) if window else None,
        is_causal=not window,
        enable_gqa=query_BTHE.shape[2] != key_BTKE.shape[2],
    )
    return attended.transpose(1, 2)


def seen(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Which of a sequence's keys each of its last queries sees through a window (above 0), bool (queries, keys)."""
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (behind >= 0) & (behind < window)


def packed_attention(query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, layout: Layout, window: int = 0) -> Tensor:
    """Each sequence of the layout attends to itself alone. Returns (T, H, E)."""
    if varlen.takes(query_THE):
        return varlen.varlen_attention(query_THE, key_TKE, value_TKE, layout.bounds_Z, layout.longest, window)
    grids = layout.grids
    if grids.gather_P is None or grids.scatter_T is None:
        grid = (grids.groups[0].rows, grids.groups[0].length)
        query, key, value = (_grid(tensor, *grid) for tensor in (query_THE, key_TKE, value_TKE))
        return causal_attention(query, key, value, window).flatten(0, 1)
    sizes = [group.rows * group.length for group in grids.groups]
    parts = [pad(tensor, grids.gather_P, grids.scatter_T).split_with_sizes(sizes) for tensor in (query_THE, key_TKE, value_TKE)]
    attended_groups = []
    for index, group in enumerate(grids.groups):
        query, key, value = (_grid(part[index], group.rows, group.length) for part in parts)
        attended_groups.append(causal_attention(query, key, value, window).flatten(0, 1))
    return unpad(torch.cat(attended_groups), grids.scatter_T)


def _grid(states: Tensor, rows: int, length: int) -> Tensor:
    return states.reshape(rows, length, *states.shape[1:])
