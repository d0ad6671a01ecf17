"""N-grams against numbers worked out by hand and against the formula written the slow way."""

import math
from collections import Counter

import pytest

from luyen.core.errors import DataError
from luyen.models.ngram import NGram


def test_bigram_by_hand() -> None:
    # "aab" and "ab" with a = 0, b = 1, vocabulary of 3, discount 1/2. Bigrams: start a 2, a a 1, a b 2.
    model = NGram(2, 3, discount=0.5).fit([[0, 0, 1], [0, 1]])
    # Below, tokens count by the contexts they follow: a after start and a (2), b after a (1), so 3 in all, 2 kinds.
    uniform = 1 / 3
    a, b, other = 1.5 / 3 + uniform / 3, 0.5 / 3 + uniform / 3, uniform / 3
    assert [model.probability([], token) for token in range(3)] == pytest.approx([a, b, other])
    # After a: 3 in all, 2 kinds, so the lower order weighs 0.5 * 2 / 3.
    after = [0.5 / 3 + a / 3, 1.5 / 3 + b / 3, other / 3]
    assert [model.probability([0], token) for token in range(3)] == pytest.approx(after)
    # After b nothing was seen: the lower order alone.
    assert model.probability([0, 1], 0) == pytest.approx(a)
    start_a = 1.5 / 2 + 0.5 / 2 * a
    assert model.score([0, 1]) == pytest.approx(-math.log(start_a * after[1]))


def test_discounts_are_chen_and_goodmans() -> None:
    # Bigrams: (0 1) 1, (1 2) 1, (start 0) 2, so n1 = 2, n2 = 1; contexts of each token: 1, 1, 1, so n2 = 0 there.
    model = NGram(2, 4).fit([[0, 1], [0], [1, 2][:0]])
    assert model.discounts == [0.5, 1 / (1 + 2 * 1)]


def slow(sequences: list[list[int]], order: int, discount: float, vocabulary: int, context: tuple[int, ...], token: int) -> float:
    """The formula of the module's docstring by counting strings of tokens, recursively."""
    padded = [[-1] * (order - 1) + sequence for sequence in sequences]
    highest = Counter(tuple(row[i : i + order]) for row in padded for i in range(len(row) - order + 1))

    def count(gram: tuple[int, ...]) -> int:
        if len(gram) == order:
            return highest[gram]
        ending = {whole[order - len(gram) - 1 :] for whole in highest if whole[order - len(gram) :] == gram}
        return len(ending)

    def probability(context: tuple[int, ...]) -> float:
        counts = [count((*context, word)) for word in range(vocabulary)]
        lower = probability(context[1:]) if context else 1 / vocabulary
        if not sum(counts):
            return lower
        return max(counts[token] - discount, 0) / sum(counts) + discount * sum(c > 0 for c in counts) / sum(counts) * lower

    return probability(context[len(context) - order + 1 :] if order > 1 else ())


def test_every_probability_equals_the_slow_formula_and_sums_to_one() -> None:
    sequences = [[0, 1, 2, 0, 1, 3], [1, 2, 0], [0, 1, 2, 0, 1, 2], [3, 3, 1, 2]]
    for order in (1, 2, 3, 4):
        model = NGram(order, 5, discount=0.6).fit(sequences)
        for context in [(0, 1, 2), (1, 2, 0), (2, 0, 1), (-1, -1, -1), (-1, -1, 0), (4, 4, 4), (3, 3, 3)]:
            chances = [model.probability(context, token) for token in range(5)]
            assert sum(chances) == pytest.approx(1.0)
            assert chances == pytest.approx([slow(sequences, order, 0.6, 5, context, token) for token in range(5)])


def test_without_discount_it_is_relative_frequency() -> None:
    # After 0: 1 twice, 2 once.
    model = NGram(2, 3, discount=0.0).fit([[0, 1], [0, 2], [0, 1]])
    assert model.score([0, 1]) == pytest.approx(-math.log(2 / 3))
    assert model.score([1]) == math.inf


def test_greedy_takes_the_most_likely_token() -> None:
    sequences = [[0, 1, 2, 0, 1, 3], [1, 2, 0], [0, 1, 2, 0, 1, 2], [3, 3, 1, 2]]
    model = NGram(3, 5).fit(sequences)
    for prompt in ([0], [1, 2], [4, 4], [3], []):
        context = [-1, -1, *prompt]
        best = max(range(5), key=lambda token: (model.probability(context, token), -token))  # noqa: B023
        assert model.greedy(prompt, 1) == [best]
    assert model.greedy([0, 1], 5) == [2, 0, 1, 2, 0]
    assert model.greedy([0, 1], 5, stop_ids=[0]) == [2]


def test_bad_input() -> None:
    with pytest.raises(DataError, match="no tokens"):
        NGram(2, 5).fit([[], []])
    with pytest.raises(DataError, match="unknown token; found 5; expected ids below 5"):
        NGram(2, 5).fit([[1, 5]])
    with pytest.raises(ValueError, match="order 0"):
        NGram(0, 5)
