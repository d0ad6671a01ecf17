"""Best-fit decreasing: every sample once, no row too full, and as tight as the textbook says."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luyen.core.errors import DataError
from luyen.data.packing import best_fit, efficiency


@st.composite
def packing_problems(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 5000))
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


def naive_best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """The sums of the rows by the definition: look at every row for the tightest that fits."""
    sums: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(capacity - total - length, place) for place, total in enumerate(sums) if total + length <= capacity]
        if fitting:
            sums[min(fitting)[1]] += length
        else:
            sums.append(length)
    return sums


@given(packing_problems())
def test_every_sample_stands_in_exactly_one_row_and_no_row_is_over_capacity(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    rows = best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= capacity for row in rows)
    assert rows == best_fit(lengths, capacity)


@given(packing_problems())
def test_rows_are_those_of_the_definition(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    sums = [sum(lengths[index] for index in row) for row in best_fit(lengths, capacity)]
    assert sorted(sums) == sorted(naive_best_fit_decreasing(lengths, capacity))


def test_a_case_by_hand() -> None:
    # Capacity 10: 7 opens a row (3 free), 6 opens one (4 free), 4 goes with 6, 3 with 7, 2 opens a third.
    assert best_fit([2, 3, 4, 6, 7], 10) == [[4, 1], [3, 2], [0]]
    assert efficiency([2, 3, 4, 6, 7], best_fit([2, 3, 4, 6, 7], 10), 10) == pytest.approx(22 / 30)


def test_search_across_chunks_of_spaces() -> None:
    # Free spaces 4000 and 1100 lie in other chunks of 1024 than the lengths that must find them.
    assert best_fit([4096 + 904, 3900, 1000, 3000], 5000) == [[0], [1, 2], [3]]
    assert best_fit([1000, 3900, 100], 5000) == [[1, 0, 2]]


def test_efficiency_on_lengths_like_those_of_chat_data() -> None:
    generator = random.Random(0)
    lengths = [min(512, max(1, round(math.exp(generator.gauss(4.5, 0.8))))) for _ in range(4096)]
    assert efficiency(lengths, best_fit(lengths, 512), 512) > 0.99
    assert efficiency([], [], 512) == 1.0


@pytest.mark.parametrize("length", [0, -1, 11])
def test_a_length_that_cannot_be_packed_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=f"sample 1; found {length} tokens; expected 1 to 10"):
        best_fit([3, length], 10)
