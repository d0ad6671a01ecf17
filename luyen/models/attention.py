"""Causal attention over packed sequences, with grouped key-value heads.

    attention(q, k, v) = softmax(q k^T / sqrt(E) + causal mask) v        (Vaswani et al., 2017, equation 1)

Query head h reads key-value head h // (H / K) (grouped-query attention, Ainslie et al., 2023, arXiv:2305.13245). With a window w a query
sees itself and the w - 1 tokens before it (Jiang et al., 2023, arXiv:2310.06825, section 2); 0 is no window.

Sequences that begin alike, as the answers to one prompt do, may share that beginning: it is read once, and each branch goes on from it
(`Layout.branched`). The result is that of the sequences written out, since no token sees what comes after it.

Shapes: B rows, T tokens, H query heads, K key-value heads, E head size;
        S sequences of a group, L tokens of its longest, P = sum of S * L over the groups; Z = all sequences + 1;
        W tokens of all sequences written out, where some share their beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from luyen.core.device import to_device
from luyen.models import varlen
from luyen.models.block_attention import block_attention, fits
from luyen.models.functions import Again, pad, unpad

Numbers = numpy.ndarray[Any, Any]
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
    """Place of each flat token in the padded grids; where it has several, the first."""
    again: Again = ()
    """Flat tokens and their further places, one pair of tensors for the second, the third and so on; of shared beginnings alone."""


@dataclass(frozen=True)
class Layout:
    """Where the independent sequences lie in a flat run of tokens.

    Everything is worked out on the host from the lengths, what only some ways of attention need when it is first asked for.
    """

    lengths: tuple[int, ...]
    positions_T: Tensor
    """Position of each token in its own sequence, int64."""
    trunks: tuple[int, ...] = field(default=(), kw_only=True)
    """Of each piece of `lengths` the number of the piece that it goes on from, -1 for one that begins; empty: all begin."""

    @staticmethod
    def branched(lengths: Sequence[int], trunks: Sequence[int], device: torch.device | str | None = None) -> Layout:
        """Consecutive pieces of these lengths; piece k goes on from piece trunks[k], which stands before it and begins, or begins (-1).

        A sequence is a piece that begins with one that goes on from it, or one that begins and that none goes on from.
        """
        alone = Layout.packed(lengths)
        if len(trunks) != len(lengths) or any(trunk >= 0 and (trunk >= own or trunks[trunk] >= 0) for own, trunk in enumerate(trunks)):
            raise ValueError(f"each trunk must begin and stand before what goes on from it, found {list(trunks)}")
        if max(trunks) < 0:
            return alone if device is None else Layout.packed(lengths, device)
        before = numpy.asarray([0 if trunk < 0 else lengths[trunk] for trunk in trunks], dtype=numpy.int64)
        positions = alone.positions_T + torch.from_numpy(numpy.repeat(before, lengths))
        return Layout(alone.lengths, to_device(positions, device), trunks=tuple(trunks))

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
    def written_out(self) -> WrittenOut:
        """The sequences with their shared beginnings repeated."""
        flat = _written_out(self.lengths, self.trunks)
        firsts, again = _occurrences(numpy.concatenate(flat))
        placed = tuple((self._placed(tokens), self._placed(places)) for tokens, places in again)
        layout = Layout.packed([len(sequence) for sequence in flat], self.positions_T.device)
        return WrittenOut(layout, self._placed(numpy.concatenate(flat)), self._placed(firsts), placed)

    @cached_property
    def grids(self) -> Grids:
        """The groups of least total cost."""
        if self.trunks:
            return self._shared_grids()
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

    def _shared_grids(self) -> Grids:
        """The grids of the sequences written out, told by where their tokens lie once."""
        sequences = _written_out(self.lengths, self.trunks)
        flat, grids = numpy.concatenate(sequences), Layout.packed([len(sequence) for sequence in sequences]).grids
        places = numpy.arange(flat.size) if grids.gather_P is None else grids.gather_P.numpy()
        inverse = numpy.arange(flat.size) if grids.scatter_T is None else grids.scatter_T.numpy()
        firsts, again = _occurrences(flat)
        further = tuple((self._placed(tokens), self._placed(inverse[later])) for tokens, later in again)
        return Grids(grids.groups, self._placed(flat[places]), self._placed(inverse[firsts]), further)

    def _placed(self, numbers: Numbers) -> Tensor:
        return to_device(torch.from_numpy(numbers), self.positions_T.device)


@dataclass(frozen=True)
class WrittenOut:
    """Sequences that share beginnings, each written out whole."""

    layout: Layout
    gather_W: Tensor
    """Flat token that stands at each place."""
    scatter_T: Tensor
    """First place of each flat token."""
    again: Again
    """Flat tokens and their further places."""


def _written_out(lengths: Sequence[int], trunks: Sequence[int]) -> list[Numbers]:
    """The flat tokens of each sequence: a beginning with what goes on from it, in the order of the latter."""
    ends = numpy.cumsum(lengths, dtype=numpy.int64)
    pieces = [numpy.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    gone_on_from = set(trunks)
    whole = [piece if trunk < 0 else numpy.concatenate([pieces[trunk], piece]) for piece, trunk in zip(pieces, trunks, strict=True)]
    return [sequence for own, sequence in enumerate(whole) if own not in gone_on_from]


def _occurrences(flat_W: Numbers) -> tuple[Numbers, list[tuple[Numbers, Numbers]]]:
    """The first place of each token, and (tokens, places) of their second, third and so on occurrences."""
    order = numpy.argsort(flat_W, kind="stable")
    tokens, starts = numpy.unique(flat_W[order], return_index=True)
    counts = numpy.diff(numpy.append(starts, flat_W.size))
    further = [(tokens[counts > time], order[starts[counts > time] + time]) for time in range(1, int(counts.max()))]
    return order[starts], further


def _similar(sizes: Numbers, order: Numbers) -> list[Numbers]:
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
        if layout.trunks:
            whole = layout.written_out
            query_THE, key_TKE, value_TKE = (
                pad(tensor, whole.gather_W, whole.scatter_T, whole.again) for tensor in (query_THE, key_TKE, value_TKE)
            )
            return unpad(packed_attention(query_THE, key_TKE, value_TKE, whole.layout, window), whole.scatter_T)
        return varlen.varlen_attention(query_THE, key_TKE, value_TKE, layout.bounds_Z, layout.longest, window)
    grids = layout.grids
    if grids.gather_P is None or grids.scatter_T is None:
        grid = (grids.groups[0].rows, grids.groups[0].length)
        query, key, value = (_grid(tensor, *grid) for tensor in (query_THE, key_TKE, value_TKE))
        return causal_attention(query, key, value, window).flatten(0, 1)
    sizes = [group.rows * group.length for group in grids.groups]
    parts = [
        pad(tensor, grids.gather_P, grids.scatter_T, grids.again).split_with_sizes(sizes) for tensor in (query_THE, key_TKE, value_TKE)
    ]
    attended_groups = []
    for index, group in enumerate(grids.groups):
        query, key, value = (_grid(part[index], group.rows, group.length) for part in parts)
        attended_groups.append(causal_attention(query, key, value, window).flatten(0, 1))
    return unpad(torch.cat(attended_groups), grids.scatter_T)


def _grid(states: Tensor, rows: int, length: int) -> Tensor:
    return states.reshape(rows, length, *states.shape[1:])
