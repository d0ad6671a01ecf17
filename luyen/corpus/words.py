"""A document split into words and lines once; every quality rule reads from here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# A word is a run of letters, digits and combining marks, with apostrophes inside; any other visible character is a word of its own,
# but a row of equal signs ("...", "-----") is one.
WORD = re.compile(r"\w+(?:['’]\w+)*|([^\w\s])\1*")
# Gopher's eight for English; for the others the most frequent function words of the language. No list: the rule is not applied.
STOP_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(["the", "be", "to", "of", "and", "that", "have", "with"]),
    "vi": frozenset(["là", "và", "của", "có", "các", "được", "trong", "cho", "một", "không", "những", "với", "này", "người", "khi"]),
    "ru": frozenset(["и", "в", "не", "на", "что", "с", "по", "это", "как", "к", "для", "из", "от", "он", "но"]),
}
_PARAGRAPHS = re.compile(r"\n{2,}")

T = TypeVar("T")
Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]


def mix(values: Hashes) -> Hashes:
    """Spread 64-bit integers evenly (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def ngrams(hashes: Hashes, size: int) -> Hashes:
    """A 64-bit hash for each run of `size` consecutive items; equal runs have equal hashes. Empty when there are fewer items."""
    if len(hashes) < size:
        return np.empty(0, np.uint64)
    result = hashes[: len(hashes) - size + 1].copy()
    with np.errstate(over="ignore"):
        for offset in range(1, size):
            result *= np.uint64(0x9E3779B97F4A7C15)
            result += hashes[offset : len(hashes) - size + 1 + offset]
    return result


class Pieces(dict[str, T]):
    """What a function makes of the pieces of a text between white space, remembered: most pieces of a text come again in the next one.

    It forgets everything when `MOST` pieces are in it, and long pieces at once, so it stays below some tens of megabytes.
    """

    MOST = 1 << 16
    LONGEST = 50

    def __init__(self, function: Callable[[str], T]) -> None:
        super().__init__()
        self.function = function

    def __missing__(self, piece: str) -> T:
        result = self.function(piece)
        if len(piece) <= self.LONGEST:
            if len(self) >= self.MOST:
                self.clear()
            self[piece] = result
        return result

    def of(self, text: str) -> Iterator[T]:
        """What the function makes of each piece of a text, in order."""
        return map(self.__getitem__, text.split())


def _split(piece: str) -> tuple[str, ...]:
    return (piece,) if piece.isalnum() else tuple([match[0] for match in WORD.finditer(piece)])


WORDS: Pieces[tuple[str, ...]] = Pieces(_split)
"""No word has white space in it, so a text's words are its pieces' words."""


def split_words(text: str) -> list[str]:
    """Every word and sign of a text, in order."""
    return list(itertools.chain.from_iterable(WORDS.of(text)))


def numbered(words: Sequence[str]) -> tuple[list[str], Integers]:
    """The different words in order of appearance, and for each word its index among them."""
    distinct = list(dict.fromkeys(words))
    index = dict(zip(distinct, range(len(distinct)), strict=True))
    return distinct, np.fromiter(map(index.__getitem__, words), np.int64, len(words))


class Words:
    """The measured parts of one text. `words` includes signs; `lengths`, `codes` and `is_symbol` are per word, in order.

    `split` is how a text becomes words; to compare with another tool, give its function.
    """

    def __init__(self, text: str, language: str = "", split: Callable[[str], list[str]] = split_words) -> None:
        self.text = text
        self.language = language
        self.split = split
        self.characters = max(1, len(text))
        self._repeated: dict[int, tuple[Integers, Integers]] = {}
        self._once: dict[str, Any] = {}

    @cached_property
    def words(self) -> list[str]:
        """Every word and sign, in order."""
        return self.split(self.text)

    def once(self, name: str, work: Callable[[Words], T]) -> T:
        """What `work` makes of this text, kept under `name` for the next rule that asks."""
        if name not in self._once:
            self._once[name] = work(self)
        result: T = self._once[name]
        return result

    @cached_property
    def _distinct(self) -> tuple[list[str], Integers]:
        return numbered(self.words)

    @property
    def distinct(self) -> list[str]:
        """Every different word once."""
        return self._distinct[0]

    @property
    def codes(self) -> Integers:
        """For each word its index in `distinct`."""
        return self._distinct[1]

    @cached_property
    def lengths(self) -> Integers:
        """Characters of each word."""
        return np.fromiter(map(len, self.distinct), np.int64, len(self.distinct))[self.codes]

    @cached_property
    def ends(self) -> list[int]:
        """Characters of all words before each word, and of all."""
        return [0, *np.cumsum(self.lengths).tolist()]

    @cached_property
    def is_symbol(self) -> NDArray[np.bool_]:
        """Which words hold no letter or digit."""
        return np.array([not any(map(str.isalnum, word)) for word in self.distinct], np.bool_)[self.codes]

    @cached_property
    def num_words(self) -> int:
        """Words that are not signs."""
        return len(self.codes) - int(self.is_symbol.sum())

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, with their indentation cut, without the fences that extraction put around code."""
        return [line for line in map(str.strip, self.text.split("\n")) if line and not line.startswith("```")]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Parts of the text between blank lines."""
        text = self.text.strip()
        return _PARAGRAPHS.split(text) if "\n\n\n" in text else text.split("\n\n")

    @cached_property
    def hashes(self) -> Hashes:
        """One hash a word, different for different words of this text."""
        return mix((np.arange(1, len(self.distinct) + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15))[self.codes]

    def repeated(self, size: int) -> tuple[Integers, Integers]:
        """Where the n-grams of words begin that occur more than once, in order, and a number for each, equal for equal ones.

        An n-gram can repeat only where its first n-1 words do, so each size looks only at what the size below left.
        """
        if size not in self._repeated:
            positions = np.arange(len(self.codes)) if size <= 2 else self.repeated(size - 1)[0]
            positions = positions[positions <= len(self.codes) - size]
            hashes = ngrams(self.hashes, size)[positions]
            _, keys, counts = np.unique(hashes, return_inverse=True, return_counts=True)
            more = counts[keys] > 1
            self._repeated[size] = positions[more], keys[more]
        return self._repeated[size]
