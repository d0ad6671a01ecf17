"""Best-fit decreasing bin packing: samples into rows of a fixed capacity (for training: Ding et al., 2024, arXiv:2404.10830).

Longest first, each sample goes into the open row with the least space that still holds it. No sample is split and none is left out.
The number of rows is at most 11/9 of the best possible, up to a constant (Johnson, 1973).
"""

from __future__ import annotations

from collections.abc import Sequence

from luyen.core.errors import DataError

_CHUNK_BITS = 10  # spaces are kept in chunks of 1024 bits, so a search touches two short integers


class _Spaces:
    """The set of free spaces that some open row has, with the rows of each; finds the smallest one that is large enough."""

    def __init__(self, capacity: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(capacity + 1)]
        self.chunks = [0] * ((capacity >> _CHUNK_BITS) + 1)
        self.summary = 0

    def add(self, space: int, row: int) -> None:
        """Row `row` has `space` tokens free."""
        self.rows[space].append(row)
        chunk = space >> _CHUNK_BITS
        self.chunks[chunk] |= 1 << (space & (1 << _CHUNK_BITS) - 1)
        self.summary |= 1 << chunk

    def take(self, needed: int) -> tuple[int, int] | None:
        """Remove and return (space, row) of the smallest space >= needed; of equal spaces the row opened or changed last."""
        chunk = needed >> _CHUNK_BITS
        low = needed & (1 << _CHUNK_BITS) - 1
        bits = self.chunks[chunk] >> low << low
        if not bits:
            above = self.summary >> (chunk + 1)
            if not above:
                return None
            chunk += _lowest(above) + 1
            bits = self.chunks[chunk]
        bit = _lowest(bits)
        space = (chunk << _CHUNK_BITS) + bit
        row = self.rows[space].pop()
        if not self.rows[space]:
            self.chunks[chunk] &= ~(1 << bit)
            if not self.chunks[chunk]:
                self.summary &= ~(1 << chunk)
        return space, row


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's lengths summing to at most `capacity`; every index stands in exactly one row.

    O(n log n) for the sort, O(1) per sample for the search (capacities to about a million). Deterministic: equal lengths keep their order.
    Raises DataError for a length below 1 or above `capacity`.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise DataError(f"cannot pack sample {index}", found=f"{length} tokens", expected=f"1 to {capacity}",
                            fix="Cut samples to the context length first.")  # fmt: skip
    rows: list[list[int]] = []
    spaces = _Spaces(capacity)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        found = spaces.take(length)
        if found is None:
            space, row = capacity, len(rows)
            rows.append([])
        else:
            space, row = found
        rows[row].append(index)
        spaces.add(space - length, row)
    return rows


def efficiency(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> float:
    """The share of the rows' capacity that tokens fill, 0 to 1; 1.0 for no rows."""
    return sum(lengths[index] for row in rows for index in row) / (len(rows) * capacity) if rows else 1.0
