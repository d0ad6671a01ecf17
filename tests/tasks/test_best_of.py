"""The best of k, from more answers than k: by hand, against every subset, and pass@k."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from luyen.core.errors import DataError
from luyen.tasks.best_of import curve, expected_max, expected_median, expected_rank


@pytest.mark.parametrize("count", [1, 4, 7])
def test_against_every_subset(count: int) -> None:
    chance = random.Random(count)
    rewards = [round(chance.gauss(0, 1), 1) for _ in range(count)]  # with ties
    for size in range(1, count + 1):
        subsets = list(itertools.combinations(rewards, size))
        assert expected_max(rewards, size) == pytest.approx(statistics.fmean(map(max, subsets)))
        assert expected_median(rewards, size) == pytest.approx(statistics.fmean(map(statistics.median, subsets)))
        assert expected_rank(rewards, size, 1) == pytest.approx(statistics.fmean(map(min, subsets)))


def test_pass_at_k() -> None:
    """Ten answers of which three are right (Chen et al., equation 1)."""
    rewards = [0.0] * 7 + [1.0] * 3
    assert expected_max(rewards, 1) == pytest.approx(0.3) and expected_max(rewards, 5) == pytest.approx(0.916667, abs=1e-6)


def test_the_curve_is_the_mean_over_prompts() -> None:
    rows = curve([[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]])
    assert [row["answers"] for row in rows] == [1, 2, 3]
    assert [row["max"] for row in rows] == pytest.approx([2.5, (5 / 3 + 4) / 2, 3.0])
    assert [row["median"] for row in rows] == pytest.approx([2.5, 2.5, 2.5])


def test_many_answers_keep_their_precision() -> None:
    rewards = [float(place) for place in range(1, 401)]
    assert expected_max(rewards, 100) == pytest.approx(401 * 100 / 101)  # of uniform numbers 1 to N: (N + 1) k / (k + 1)
    with pytest.raises(DataError, match="rank 5 of 5; expected 1 to 4"):
        expected_max([1.0] * 4, 5)
