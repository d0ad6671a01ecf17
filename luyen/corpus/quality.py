"""Quality rules with their sources and thresholds, in one table.

A rule measures one number of a document and says what is too low or too high. The first rule that fails is the reason for dropping.
The thresholds of `web` are the papers'; `reference` is for documentation, which is full of short lines, signs and repeated headings;
`datatrove` counts as the code that FineWeb was made with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from luyen.core.errors import ConfigError, nearest
from luyen.corpus.published import PUBLISHED
from luyen.corpus.repetition import duplicate_character_share, duplicate_ngram_share, duplicate_share, top_ngram_share
from luyen.corpus.rule import Rule
from luyen.corpus.words import STOP_WORDS, Words

Preset = Literal["web", "reference", "datatrove", "none"]

_TERMINAL = (".", "!", "?", '"', "'", "”", "»", "…", "’")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”»)\]]*(?=\s|\Z)")
_HEADING_MARKS = re.compile(r"^#{1,6} ", re.MULTILINE)
_BULLETS = ("•", "- ", "* ", "‣", "▪", "●", "◦", "–")


def _stop_words(words: Words) -> float:
    wanted = STOP_WORDS.get(words.language)
    if wanted is None:
        return float("inf")
    chosen = np.array([word.lower() in wanted for word in words.distinct], np.bool_)
    return float(chosen[words.codes].sum()) if len(chosen) else 0.0


def _mean_word_length(words: Words) -> float:
    plain = words.lengths[~words.is_symbol]
    return float(plain.mean()) if len(plain) else 0.0


def _words_with_letter(words: Words) -> float:
    """Words split at white space here, as in the paper; with signs as words of their own no page that shows code would pass."""
    pieces = Counter(words.text.split())
    return sum(count for piece, count in pieces.items() if any(map(str.isalpha, piece))) / max(1, pieces.total())


def _per_word(words: Words, *signs: str) -> float:
    return sum(map(words.text.count, signs)) / max(1, len(words.codes))


def _hashes(words: Words) -> float:
    """The signs that mark headings are extraction's, not the page's."""
    marks = sum(len(mark) - 1 for mark in _HEADING_MARKS.findall(words.text))
    return (words.text.count("#") - marks) / max(1, len(words.codes))


def _line_share(words: Words, test: Callable[[str], bool]) -> float:
    return sum(map(test, words.lines)) / max(1, len(words.lines))


def _paragraph_characters(words: Words) -> float:
    return duplicate_character_share(words.paragraphs, words.characters)


def _line_characters(words: Words) -> float:
    return duplicate_character_share(words.lines, words.characters)


def _ending_lines(words: Words) -> float:
    return _line_share(words, lambda line: line.endswith(_TERMINAL))


def _short_lines(words: Words) -> float:
    return _line_share(words, lambda line: len(line) <= 30)


GOPHER = "Rae et al. 2021 (arXiv:2112.11446), A.1.1"
TABLE_A1 = "Rae et al. 2021 (arXiv:2112.11446), table A1"
C4 = "Raffel et al. 2020 (JMLR 21:140), 2.2"
FINEWEB = "Penedo et al. 2024 (arXiv:2406.17557), 3.6"
OWN = "Luyện: bounds the work of the later stages"

RULES: tuple[Rule, ...] = (
    Rule("longest_word", "above", 1000, 1000, C4 + " (limit of its published code)", lambda w: float(w.lengths.max(initial=0))),
    Rule("min_words", "below", 50, 10, GOPHER, lambda w: w.num_words),
    Rule("max_words", "above", 100_000, 1_000_000, GOPHER, lambda w: w.num_words),
    Rule("min_mean_word_length", "below", 3, 2, GOPHER, _mean_word_length),
    Rule("max_mean_word_length", "above", 10, 15, GOPHER, _mean_word_length),
    Rule("hashes_per_word", "above", 0.1, 0.3, GOPHER, _hashes),
    Rule("ellipses_per_word", "above", 0.1, 0.3, GOPHER, lambda w: _per_word(w, "...", "…")),
    Rule("bullet_lines", "above", 0.9, None, GOPHER, lambda w: _line_share(w, lambda line: line.startswith(_BULLETS))),
    Rule("ellipsis_lines", "above", 0.3, 0.5, GOPHER, lambda w: _line_share(w, lambda line: line.endswith(("...", "…")))),
    Rule("words_with_letter", "below", 0.8, 0.35, GOPHER, _words_with_letter),
    Rule("stop_words", "below", 2, None, GOPHER, _stop_words),
    Rule("duplicate_paragraphs", "above", 0.3, None, TABLE_A1, lambda w: duplicate_share(w.paragraphs), 0.3),
    Rule("duplicate_paragraph_characters", "above", 0.2, None, TABLE_A1, _paragraph_characters, 0.2),
    Rule("duplicate_lines", "above", 0.3, None, TABLE_A1, lambda w: duplicate_share(w.lines)),
    Rule("duplicate_line_characters", "above", 0.2, 0.9, TABLE_A1, _line_characters),
    Rule("top_2_gram", "above", 0.20, 0.4, TABLE_A1, lambda w: top_ngram_share(w, 2)),
    Rule("top_3_gram", "above", 0.18, 0.4, TABLE_A1, lambda w: top_ngram_share(w, 3)),
    Rule("top_4_gram", "above", 0.16, 0.4, TABLE_A1, lambda w: top_ngram_share(w, 4)),
    Rule("duplicate_5_grams", "above", 0.15, None, TABLE_A1, lambda w: duplicate_ngram_share(w, 5)),
    Rule("duplicate_6_grams", "above", 0.14, None, TABLE_A1, lambda w: duplicate_ngram_share(w, 6)),
    Rule("duplicate_7_grams", "above", 0.13, None, TABLE_A1, lambda w: duplicate_ngram_share(w, 7)),
    Rule("duplicate_8_grams", "above", 0.12, None, TABLE_A1, lambda w: duplicate_ngram_share(w, 8)),
    Rule("duplicate_9_grams", "above", 0.11, None, TABLE_A1, lambda w: duplicate_ngram_share(w, 9)),
    Rule("duplicate_10_grams", "above", 0.10, 0.95, TABLE_A1, lambda w: duplicate_ngram_share(w, 10)),
    Rule("lorem_ipsum", "above", 0, 0, C4, lambda w: w.text.lower().count("lorem ipsum")),
    Rule("curly_brackets", "above", None, None, C4 + "; off: it drops every page that shows code", lambda w: w.text.count("{")),
    Rule("sentences", "below", 5, None, C4, lambda w: len(_SENTENCE_END.findall(w.text))),
    Rule("lines_ending_in_punctuation", "below", 0.12, None, FINEWEB, _ending_lines),
    Rule("short_lines", "above", 0.67, None, FINEWEB + "; lines of at most 30 characters", _short_lines),
    Rule("newlines_per_word", "above", 0.3, None, FINEWEB + " (rule list_ratio of its published code)", lambda w: _per_word(w, "\n")),
    *PUBLISHED,
)  # fmt: skip
BY_NAME: dict[str, Rule] = {rule.name: rule for rule in RULES}


def thresholds(preset: Preset, changes: Mapping[str, float | None] | None = None) -> dict[str, float]:
    """The threshold of each rule that is on. `changes` overrides single rules, None switches one off; ConfigError for an unknown name."""
    chosen: dict[str, float | None] = {} if preset == "none" else {rule.name: getattr(rule, preset) for rule in RULES}
    for name, value in (changes or {}).items():
        if name not in BY_NAME:
            raise ConfigError("thresholds: unknown rule", found=repr(name), fix=nearest(name, BY_NAME))
        chosen[name] = value
    return {rule.name: value for rule in RULES if (value := chosen.get(rule.name)) is not None}


def judge(words: Words, limits: Mapping[str, float]) -> tuple[str, str] | None:
    """The first rule that a document fails and the reason in words, or None when it passes all."""
    for name, limit in limits.items():
        rule = BY_NAME[name]
        value = rule.measure(words)
        if (value < limit) if rule.fails == "below" else (value > limit):
            return name, f"{name} is {value:.4g}, {rule.fails} {limit:g} ({rule.source})"
    return None
