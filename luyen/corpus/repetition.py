"""How repetitive a text is: the measures of Rae et al. 2021 (Gopher, arXiv:2112.11446), table A1.

All are fractions of the text's characters, but duplicate_lines and duplicate_paragraphs, which are fractions of their number.
Duplicate n-grams are counted without counting a character twice, by walking on behind each one found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from luyen.corpus.words import Words


def duplicates(items: Iterable[str]) -> tuple[int, int]:
    """How many items occurred before in the sequence, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for item in items:
        if item in seen:
            count += 1
            characters += len(item)
        else:
            seen.add(item)
    return count, characters


def duplicate_share(items: Sequence[str]) -> float:
    """Duplicates among the items, by number."""
    return duplicates(items)[0] / max(1, len(items))


def duplicate_character_share(items: Sequence[str], characters: int) -> float:
    """Characters in duplicates over all characters of the text."""
    return duplicates(items)[1] / characters


def top_ngram_share(words: Words, size: int) -> float:
    """Characters within the most frequent n-gram of words (the earliest on a tie), words joined by one space."""
    if len(words.codes) < size:
        return 0.0
    positions, keys = words.repeated(size)
    start, most = 0, 1
    if len(positions):
        counts = np.bincount(keys)[keys]
        most = int(counts.max())
        start = int(positions[counts == most].min())
    length = int(words.lengths[start : start + size].sum()) + size - 1
    return length * most / words.characters


def duplicate_ngram_share(words: Words, size: int) -> float:
    """Characters within n-grams of words that occurred before."""
    positions, keys = words.repeated(size)
    if not len(positions):
        return 0.0
    ends = words.ends
    seen = bytearray(int(keys.max()) + 1)
    characters = 0
    following = 0  # the first position not inside an n-gram already counted
    for position, key in zip(positions.tolist(), keys.tolist(), strict=True):
        if position < following:
            continue
        if seen[key]:
            characters += ends[position + size] - ends[position]
            following = position + size
        else:
            seen[key] = 1
    return characters / words.characters
