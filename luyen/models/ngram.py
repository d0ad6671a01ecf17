"""Interpolated Kneser-Ney n-grams over token ids: the baseline that every model must beat (Kneser and Ney, 1995; Chen and Goodman, 1998).

    P_n(w | h) = max(c(h w) - D_n, 0) / c(h) + D_n N(h) / c(h) * P_{n-1}(w | h')

c(h w) counts n-grams at the highest order and, below it, in how many different contexts h w was seen; N(h) is the
number of different tokens after h, h' drops the oldest token of h, and P_0 is uniform over the vocabulary. Chen and
Goodman's estimate D_n = n_1 / (n_1 + 2 n_2), with n_k the number of n-grams of count k, is the default discount.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial

from luyen.core.errors import DataError

START = -1
"""Stands before the first token of every sequence; it is never predicted."""
Context = tuple[int, ...]


class NGram:
    """An n-gram model. `discount` replaces the estimated discounts of all orders; 0 gives relative frequencies."""

    def __init__(self, order: int, vocab_size: int, discount: float | None = None) -> None:
        if order < 1 or vocab_size < 1 or (discount is not None and not 0 <= discount < 1):
            raise ValueError(f"order {order} and vocab_size {vocab_size} must be positive, discount {discount} in [0, 1)")
        self.order, self.vocab_size, self.discount = order, vocab_size, discount
        self.followers: list[dict[Context, Counter[int]]] = []
        """For each length of context, from 0: how often each token followed it, by the count of its order."""
        self.totals: list[dict[Context, int]] = []
        self.discounts: list[float] = []
        self._best: dict[Context, int] = {}

    def fit(self, sequences: Iterable[Sequence[int]]) -> NGram:
        """Count the sequences (each one document). Raises DataError when there is no token."""
        highest: dict[Context, Counter[int]] = defaultdict(Counter)
        for sequence in sequences:
            for context, token in self._contexts(sequence):
                highest[context][token] += 1
        if not highest:
            raise DataError("the n-gram model has no tokens to count", fix="Give it at least one sequence that is not empty.")
        self._best = {}
        self.followers = [dict(highest)]
        for _ in range(self.order - 1):
            lower: dict[Context, Counter[int]] = defaultdict(Counter)
            for context, counts in self.followers[0].items():
                for token in counts:
                    lower[context[1:]][token] += 1
            self.followers.insert(0, dict(lower))
        self.totals = [{context: counts.total() for context, counts in level.items()} for level in self.followers]
        self.discounts = [self._estimate(level) if self.discount is None else self.discount for level in self.followers]
        return self

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | the last order - 1 tokens of the context)."""
        result = 1.0 / self.vocab_size
        for suffix, level in self._suffixes(context):
            counts, total = self.followers[level][suffix], self.totals[level][suffix]
            discount = self.discounts[level]
            result = max(counts[token] - discount, 0.0) / total + discount * len(counts) / total * result
        return result

    def score(self, tokens: Sequence[int]) -> float:
        """Minus the log-probability of a whole sequence from its beginning, in nats; infinite if a token has probability 0."""
        total = 0.0
        for context, token in self._contexts(tokens):
            probability = self.probability(context, token)
            if probability == 0.0:
                return math.inf
            total -= math.log(probability)
        return total

    def greedy(self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Collection[int] = ()) -> list[int]:
        """The most likely continuation, token by token, up to a stop id (left out) or max_new_tokens; the lowest id wins a tie."""
        tokens = [START] * (self.order - 1) + list(prompt)
        answer: list[int] = []
        for _ in range(max_new_tokens):
            token = self._most_likely(tokens)
            if token in stop_ids:
                break
            tokens.append(token)
            answer.append(token)
        return answer

    def _most_likely(self, context: Sequence[int]) -> int:
        """The best token is one that followed the context, or else the best token of the next shorter context."""
        best = 0
        for suffix, level in self._suffixes(context):
            if suffix not in self._best:
                candidates = {best, *self.followers[level][suffix]}
                self._best[suffix] = min(candidates, key=partial(self._rank, suffix))
            best = self._best[suffix]
        return best

    def _rank(self, context: Context, token: int) -> tuple[float, int]:
        return -self.probability(context, token), token

    def _suffixes(self, context: Sequence[int]) -> Iterator[tuple[Context, int]]:
        """The known ends of a context with their lengths, from the empty one up to order - 1 tokens."""
        for level in range(min(self.order - 1, len(context)) + 1):
            suffix = tuple(context[len(context) - level :])
            if suffix not in self.followers[level]:
                return
            yield suffix, level

    def _contexts(self, sequence: Sequence[int]) -> Iterator[tuple[Context, int]]:
        """Each token of a sequence with the order - 1 tokens before it."""
        padded = [START] * (self.order - 1) + list(sequence)
        for place, token in enumerate(sequence):
            if not 0 <= token < self.vocab_size:
                raise DataError("unknown token", found=token, expected=f"ids below {self.vocab_size}")
            yield tuple(padded[place : place + self.order - 1]), token

    def _estimate(self, level: dict[Context, Counter[int]]) -> float:
        """Chen and Goodman's discount; 0.5 where too few rare n-grams allow an estimate."""
        counts_of_counts = Counter(count for counts in level.values() for count in counts.values())
        once, twice = counts_of_counts[1], counts_of_counts[2]
        return once / (once + 2 * twice) if once and twice else 0.5
