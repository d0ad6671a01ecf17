"""Learning byte pairs with rustbpe (A. Karpathy), which counts and merges on all cores.

Ids are bytes first, in order, then merges from 256 on. The most frequent pair is merged next; of several the one with the smaller ids.
rustbpe knows no least frequency. Counts of merges never rise from one to the next, so a pair of two zero bytes, which sorts before all
others, is added as often as one time too few: its merge stands where the frequent pairs end. No other pair may hold a zero byte, so
texts are cut there: NUL, which is no writing, is never part of a longer entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import rustbpe

from luyen.core.errors import DataError

NUL = "\0"
AT_ONCE = 256
"""Texts that are held and counted together."""
MOST_BYTES = 1 << 31
"""rustbpe counts with 32 bits."""


def learn_pairs(texts: Iterable[str], pattern: str, merges: int, min_frequency: int) -> list[tuple[bytes, bytes]]:
    """At most `merges` merges, in order, of pairs seen at least `min_frequency` times in the stretches that `pattern` cuts.

    Raises DataError for more than 2 GiB of text, and what the texts raise.
    """
    learner = rustbpe.Tokenizer()
    learner.train_from_iterator(_fed(texts, min_frequency - 1), 256 + merges, buffer_size=AT_ONCE, pattern=pattern)
    ranks = {bytes(token): rank for token, rank in learner.get_mergeable_ranks()}
    learnt: list[tuple[bytes, bytes]] = []
    for token, rank in list(ranks.items())[256:]:
        if token == NUL.encode() * 2:
            break
        learnt.append(_last_merge(token, ranks, rank))
    return learnt


def _fed(texts: Iterable[str], ends: int) -> Iterator[str]:
    size = 0
    for text in texts:
        size += len(text.encode())
        if size >= MOST_BYTES:
            raise DataError("too much text to learn a vocabulary from", found="more than 2 GiB", fix="Give a part of it; that is plenty.")
        yield from text.split(NUL)
    for _ in range(ends):
        yield NUL * 2


def _last_merge(token: bytes, ranks: dict[bytes, int], rank: int) -> tuple[bytes, bytes]:
    """The two entries that became `token`: what the merges before it leave of its bytes. A text has one derivation, so they are two."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, rank) for left, right in zip(parts, parts[1:], strict=False)]
        place = joined.index(min(joined))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    left, right = parts
    return left, right
