"""What the best, and the middle one, of k answers is worth, from the rewards of K >= k of them, without bias.

    E[max of k] = sum over i of  C(i - 1, k - 1) / C(K, k)  x_(i)          x_(1) <= ... <= x_(K), i from 1

the mean over all subsets of k answers: x_(i) is the largest of those that take it and k - 1 of the i - 1 below it. With rewards of 0 and 1
it is pass@k (Chen et al., 2021, arXiv:2107.03374, equation 1). The m-th smallest of k is x_(i) in C(i - 1, m - 1) C(K - i, k - m) of them.

Shapes: P prompts, K answers to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from luyen.core.errors import DataError


def expected_max(rewards: Sequence[float], size: int) -> float:
    """Of `size` answers drawn from these without putting back. DataError for more than there are."""
    return expected_rank(rewards, size, size)


def expected_median(rewards: Sequence[float], size: int) -> float:
    """The same of the middle one; of an even number of answers the mean of the two middle ones."""
    low, high = (size + 1) // 2, size // 2 + 1
    return (expected_rank(rewards, size, low) + expected_rank(rewards, size, high)) / 2


def expected_rank(rewards: Sequence[float], size: int, rank: int) -> float:
    """The mean, over all subsets of `size`, of the `rank`-th smallest, from 1."""
    count = len(rewards)
    if not 1 <= rank <= size <= count:
        raise DataError("cannot take so many of these answers", found=f"rank {rank} of {size}", expected=f"1 to {count}")
    whole = comb(count, size)
    ways = (comb(place, rank - 1) * comb(count - 1 - place, size - rank) for place in range(count))
    return sum(way / whole * reward for way, reward in zip(ways, sorted(rewards), strict=True))


def curve(rewards_PK: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """For every k from 1 to K the expected maximum and median of k answers, mean over the prompts."""
    sizes = range(1, min(len(row) for row in rewards_PK) + 1)
    count = len(rewards_PK)
    return [
        {
            "answers": size,
            "max": sum(expected_max(row, size) for row in rewards_PK) / count,
            "median": sum(expected_median(row, size) for row in rewards_PK) / count,
        }
        for size in sizes
    ]
