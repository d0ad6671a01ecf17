"""The filters of datatrove 0.10 at their defaults, as rules: the same counting, the same thresholds, by the names of its reasons.

FineWeb was made with this code. It differs from the papers where they leave something open (what a word, a line or a bullet is), and
so from the rules of the preset `web`; the preset `datatrove` keeps and drops what its filters keep and drop. Given the same words every
figure is the same to the last bit (tests/corpus/test_published.py). datatrove's words are spaCy's, and ours nearly so
(`luyen/corpus/spacy_words.py`); for Vietnamese they are pyvi's, which joins syllables, and ours stay syllables.
Source: huggingface/datatrove 0.10.1, pipeline/filters, Apache-2.0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import numpy as np

from luyen.corpus.repetition import duplicate_character_share, duplicate_ngram_share, duplicate_share, duplicates, top_ngram_share
from luyen.corpus.rule import Rule
from luyen.corpus.spacy_words import spacy_words
from luyen.corpus.words import STOP_WORDS, Words, split_words


def _characters(ranges: str) -> frozenset[str]:
    """Code points from hexadecimal ranges."""
    ends = [(first, last or first) for first, _, last in (part.partition("-") for part in ranges.split())]
    return frozenset(chr(point) for first, last in ends for point in range(int(first, 16), int(last, 16) + 1))


SENTENCE_SIGNS = _characters(
    "21 2e 3f 589 61f 6d4 700-702 7f9 964-965 104a-104b 1362 1367-1368 166e 1735-1736 1803 1809 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1c3b-1c3c "
    "1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb "
    "fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 "
    "1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11a42-11a43 11a9b-11a9c 11c41-11c42 16a6e-16a6f "
    "16af5 16b37-16b38 16b44 1bc9f 1da88"
)
"""The signs that end a sentence for spaCy's sentencizer."""
TERMINAL_SIGNS = SENTENCE_SIGNS | _characters(
    "61d-61e 837 839 83d-83e 1944-1945 17d4-17d6 17d9-17da 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944 11946 11ef7-11ef8 "
    "11f43-11f44 16e98"
)
"""The signs that end a line for the FineWeb filter."""
PUNCTUATION = TERMINAL_SIGNS | _characters(
    "0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d 3010-3011 ff01 ff05 "
    "ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e"
)
"""A word made of these alone is a symbol for the Gopher filter."""
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def _published(words: Words) -> Words:
    """The text in datatrove's words, unless the words were given by another function than our own."""
    if words.split is not split_words:
        return words
    return words.once("spacy", lambda words: Words(words.text, words.language, lambda text: spacy_words(text, words.language)))


def _plain_lengths(words: Words) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Lengths of the words that are not made of signs alone."""
    plain = np.array([not PUNCTUATION.issuperset(word) for word in words.distinct], np.bool_)
    return words.lengths[plain[words.codes]]


def _number(words: Words) -> float:
    return len(_published(words).once("plain_lengths", _plain_lengths))


def _mean_length(words: Words) -> float:
    lengths = _published(words).once("plain_lengths", _plain_lengths)
    return float(np.mean(lengths)) if len(lengths) else 0.0


def _per_word(words: Words, *signs: str) -> float:
    return sum(map(words.text.count, signs)) / max(1, len(_published(words).codes))


def _share_of_lines(words: Words, test: Callable[[str], bool]) -> float:
    lines = words.once("splitlines", lambda words: words.text.splitlines())
    return sum(map(test, lines)) / max(1, len(lines))


def _with_letter(words: Words) -> float:
    words = _published(words)
    letters = np.array([any(map(str.isalpha, word)) for word in words.distinct], np.bool_)
    return int(letters[words.codes].sum()) / max(1, len(words.codes)) if len(letters) else 0.0


def _stop_words(words: Words) -> float:
    wanted = STOP_WORDS.get(words.language)
    return float("inf") if wanted is None else float(len(wanted.intersection(_published(words).distinct)))


def _lines(words: Words) -> list[str]:
    """Lines as they stand, blank ones left out but for a first or last one."""
    lines = words.text.split("\n")
    return [lines[0], *filter(None, lines[1:-1]), lines[-1]] if len(lines) > 1 else lines


def _visible_lines(words: Words) -> list[str]:
    return words.once("visible_lines", lambda words: [line for line in words.text.split("\n") if line.strip()])


def _duplicate_characters(words: Words) -> float:
    return duplicates(_visible_lines(words))[1] / max(1, len(words.text) - words.text.count("\n"))


def _ending_share(words: Words) -> float:
    lines = _visible_lines(words)
    return sum(line[-1] in TERMINAL_SIGNS for line in lines) / max(1, len(lines))


def _short_share(words: Words) -> float:
    lines = _visible_lines(words)
    return sum(len(line) <= 30 for line in lines) / max(1, len(lines))


def _c4(words: Words) -> tuple[int, int, int]:
    """What the C4 filter finds in the lines it would keep: lorem ipsum, curly brackets, sentences. It stops at the first of the two."""
    sentences, split = 0, _published(words).split
    for line in map(str.strip, words.text.splitlines()):
        pieces = line.split()
        if len(pieces) < 3 or any(len(piece) > 1000 for piece in pieces):
            continue
        line = _CITATION.sub("", line) if "[" in line else line
        if not line.endswith((".", "?", "!", '"', "'")) or line.endswith("..."):
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return 1, 0, sentences
        if "javascript" in lower:
            continue
        if "{" in line:
            return 0, 1, sentences
        if not any(phrase in lower for phrase in _POLICY):
            sentences += count_sentences(split(line))
    return 0, 0, sentences


def count_sentences(words: list[str]) -> int:
    """Sentences as spaCy's sentencizer counts them: one begins behind a sign that ends one and the signs that follow it."""
    count, ended = (1 if words else 0), False
    for word in words:
        if word in SENTENCE_SIGNS:
            ended = True
        elif ended and not all(unicodedata.category(character)[0] == "P" for character in word):
            count, ended = count + 1, False
    return count


GOPHER = "datatrove 0.10, GopherQualityFilter"
REPETITION = "datatrove 0.10, GopherRepetitionFilter"
C4 = "datatrove 0.10, C4QualityFilter"
FINEWEB = "datatrove 0.10, FineWebQualityFilter"


def _rule(name: str, fails: str, limit: float, source: str, measure: Callable[[Words], float]) -> Rule:
    return Rule(name, "below" if fails == "below" else "above", None, None, source, measure, limit)


def _repetition(name: str, size: int, limit: float, share: Callable[[Words, int], float]) -> Rule:
    return _rule(name, "above", limit, REPETITION, lambda words: share(_published(words), size))


PUBLISHED: tuple[Rule, ...] = (
    _rule("gopher_short_doc", "below", 50, GOPHER, _number),
    _rule("gopher_long_doc", "above", 100_000, GOPHER, _number),
    _rule("gopher_below_avg_threshold", "below", 3, GOPHER, _mean_length),
    _rule("gopher_above_avg_threshold", "above", 10, GOPHER, _mean_length),
    _rule("gopher_too_many_hashes", "above", 0.1, GOPHER, lambda w: _per_word(w, "#")),
    _rule("gopher_too_many_ellipsis", "above", 0.1, GOPHER, lambda w: _per_word(w, "...", "…")),
    _rule("gopher_too_many_bullets", "above", 0.9, GOPHER, lambda w: _share_of_lines(w, lambda line: line.lstrip().startswith(("•", "-")))),
    _rule("gopher_too_many_end_ellipsis", "above", 0.3, GOPHER, lambda w: _share_of_lines(w, lambda x: x.rstrip().endswith(("...", "…")))),
    _rule("gopher_below_alpha_threshold", "below", 0.8, GOPHER, _with_letter),
    _rule("gopher_enough_stop_words", "below", 2, GOPHER, _stop_words),
    _rule("dup_line_frac", "above", 0.3, REPETITION, lambda w: duplicate_share(w.once("lines", _lines))),
    _rule("dup_line_char_frac", "above", 0.2, REPETITION, lambda w: duplicate_character_share(w.once("lines", _lines), w.characters)),
    *(_repetition(f"top_{size}_n_gram", size, limit, top_ngram_share) for size, limit in ((2, 0.2), (3, 0.18), (4, 0.16))),
    *(
        _repetition(f"duplicated_{size}_n_grams", size, limit, duplicate_ngram_share)
        for size, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    _rule("c4_lorem_ipsum", "above", 0, C4, lambda w: w.once("c4", _c4)[0]),
    _rule("c4_curly_bracket", "above", 0, C4, lambda w: w.once("c4", _c4)[1]),
    _rule("c4_too_few_sentences", "below", 5, C4, lambda w: w.once("c4", _c4)[2]),
    _rule("line_punct_ratio", "below", 0.12, FINEWEB, _ending_share),
    _rule("short_line_ratio", "above", 0.67, FINEWEB, _short_share),
    _rule("char_dup_ratio", "above", 0.01, FINEWEB, _duplicate_characters),
    _rule("list_ratio", "above", 0.3, FINEWEB, lambda w: _per_word(w, "\n")),
)
"""What its filters count in another way than the rules of `luyen/corpus/quality.py`; the others stand there."""
FILTERS: dict[str, tuple[str, ...]] = {
    "GopherQualityFilter": tuple(rule.name for rule in PUBLISHED if rule.source == GOPHER),
    "GopherRepetitionFilter": (
        "duplicate_paragraphs", "duplicate_paragraph_characters", "dup_line_frac", "dup_line_char_frac",
        *(f"top_{size}_n_gram" for size in (2, 3, 4)), *(f"duplicated_{size}_n_grams" for size in range(5, 11)),
    ),
    "C4QualityFilter": tuple(rule.name for rule in PUBLISHED if rule.source == C4),
    "FineWebQualityFilter": tuple(rule.name for rule in PUBLISHED if rule.source == FINEWEB),
}  # fmt: skip
"""The rules that each of its filters stands for."""
