"""Quality rules against numbers counted by hand and repetition measures against a plain rewriting of their definition."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luyen.core.errors import ConfigError
from luyen.corpus.quality import BY_NAME, RULES, judge, thresholds
from luyen.corpus.repetition import duplicate_ngram_share, duplicates, top_ngram_share
from luyen.corpus.words import WORD, Pieces, Words, split_words

PROSE = """The committee met in the morning to discuss the plan for the new library, and it was agreed that it would be open to all.
Two members asked whether the costs had been checked with care, because the last estimate did not include the heating of the hall.
After a long debate they have decided to wait for the engineer, who will visit the site with her team before the end of the month.
Nobody doubted that a library is of use; the question is only how large it must be, and who is going to pay. They will meet again."""


def measure(rule: str, text: str, language: str = "en") -> float:
    return float(BY_NAME[rule].measure(Words(text, language)))


def test_word_splitting_is_for_all_of_unicode() -> None:
    text = "Don't! Tiếng Việt, ещё... 3.14 x_1 ‘quoted’ — १२३"
    assert Words(text).words == ["Don't", "!", "Tiếng", "Việt", ",", "ещё", "...", "3", ".", "14", "x_1", "‘", "quoted", "’", "—", "१२३"]


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("min_words", "one two, three.", 3),
        ("max_mean_word_length", "aa bbbb. cccccc", 4),
        ("hashes_per_word", "# Heading\n#tag one two", 1 / 6),  # the heading's sign is not counted; words: # Heading # tag one two
        ("ellipses_per_word", "wait... what…", 2 / 4),
        ("bullet_lines", "- a\n• b\n\nc\n* d", 3 / 4),
        ("ellipsis_lines", "a...\nb…\nc\nd", 1 / 2),
        ("words_with_letter", "a 1 b2 -- c", 3 / 5),
        ("stop_words", "The end of that", 3),
        ("duplicate_lines", "a\nb\n a\nc\na", 2 / 5),
        ("duplicate_line_characters", "ab\ncd\nab", 2 / 8),
        ("duplicate_paragraphs", "ab\n\ncd\n\nab", 1 / 3),
        ("duplicate_paragraph_characters", "ab\n\ncd\n\nab", 2 / 10),
        ("top_2_gram", "a b a b c", 2 * 3 / 9),
        ("duplicate_5_grams", "a b c d e a b c d e", 5 / 19),
        ("longest_word", "a bbb cc", 3),
        ("lorem_ipsum", "Lorem ipsum dolor", 1),
        ("curly_brackets", "{ x }", 1),
        ("sentences", 'One. Two? "Three!" v1.2 four', 3),
        ("lines_ending_in_punctuation", "a.\nb\n\nc!\nd", 1 / 2),
        ("short_lines", "short\n" + "x" * 31, 1 / 2),
        ("newlines_per_word", "a\nb\nc", 2 / 3),
    ],
)  # fmt: skip
def test_measures_counted_by_hand(rule: str, text: str, expected: float) -> None:
    assert measure(rule, text) == pytest.approx(expected)


def test_stop_words_follow_the_language() -> None:
    assert measure("stop_words", "Đây là nhà của tôi và bạn", "vi") == 3
    assert measure("stop_words", "Это не так, и я на работе", "ru") == 4
    assert measure("stop_words", "anything", "fr") == float("inf")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab'’.-_1 \t\n\u2003ẹ́…", max_size=60))
def test_words_are_those_of_one_pass_over_the_text(text: str) -> None:
    assert split_words(text) == [match[0] for match in WORD.finditer(text)]


def test_what_is_remembered_of_pieces_is_bounded() -> None:
    asked: list[str] = []
    pieces = Pieces(lambda piece: asked.append(piece) or piece.upper())
    pieces.MOST, pieces.LONGEST = 3, 4  # type: ignore[misc]
    assert list(pieces.of("a b a  toolong c d a toolong")) == ["A", "B", "A", "TOOLONG", "C", "D", "A", "TOOLONG"]
    assert asked == ["a", "b", "toolong", "c", "d", "a", "toolong"]  # the fourth piece made it forget
    assert len(pieces) <= 3


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n", max_size=40))
def test_lines_and_paragraphs_are_cut_at_runs_of_newlines(text: str) -> None:
    assert Words(text).paragraphs == re.split(r"\n{2,}", text.strip())
    lines = re.split("\n+", text)
    assert measure("dup_line_frac", text) == (len(lines) - len(set(lines))) / len(lines)


def naive_top(words: list[str], size: int, characters: int) -> float:
    grams = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    if not grams:
        return 0.0
    gram, count = grams.most_common(1)[0]
    return len(" ".join(gram)) * count / characters


def naive_duplicates(words: list[str], size: int, characters: int) -> float:
    seen, position, repeated = set(), 0, 0
    while position < len(words) - size + 1:
        gram = tuple(words[position : position + size])
        if gram in seen:
            repeated += len("".join(gram))
            position += size
        else:
            seen.add(gram)
            position += 1
    return repeated / characters


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "đ", "ещё", "."]), max_size=60), st.integers(2, 10))
def test_repetition_equals_the_definition(words: list[str], size: int) -> None:
    text = " ".join(words)
    measured = Words(text)
    assert top_ngram_share(measured, size) == pytest.approx(naive_top(measured.words, size, max(1, len(text))))
    assert duplicate_ngram_share(measured, size) == pytest.approx(naive_duplicates(measured.words, size, max(1, len(text))))


def test_repetition_on_a_long_text() -> None:
    words = random.Random(0).choices(["alpha", "beta", "gamma", "delta"], k=3000)
    text = " ".join(words)
    for size in (5, 7, 10):
        assert duplicate_ngram_share(Words(text), size) == pytest.approx(naive_duplicates(words, size, len(text)))


def test_duplicates() -> None:
    assert duplicates(["a", "bb", "a", "bb", "bb"]) == (3, 5)


def test_prose_passes_and_rubbish_is_named() -> None:
    limits = thresholds("web")
    assert judge(Words(PROSE, "en"), limits) is None
    failed = {
        "min_words": "Too short.",
        "longest_word": PROSE + " " + "x" * 1001,
        "max_mean_word_length": PROSE + " pneumonoultramicroscopicsilicovolcanoconiosis" * 60,
        "hashes_per_word": PROSE + " #tag" * 60,
        "words_with_letter": PROSE + " 12 345 6789" * 40,
        "stop_words": " ".join(f"word{chr(97 + i % 26)}{i} again." for i in range(60)),
        "duplicate_lines": PROSE + "\nSame line here again." * 6,
        "top_2_gram": PROSE + " buy now" * 60,
        "lorem_ipsum": PROSE + " Lorem ipsum dolor sit amet.",
    }
    for rule, text in failed.items():
        result = judge(Words(text, "en"), limits)
        assert result is not None and result[0] == rule, (rule, result)
        assert f"{limits[rule]:g}" in result[1]


def test_presets_and_overrides() -> None:
    assert thresholds("none") == {}
    assert thresholds("none", {"min_words": 5}) == {"min_words": 5}
    assert "stop_words" not in thresholds("web", {"stop_words": None})
    assert thresholds("reference")["min_words"] < thresholds("web")["min_words"]
    with pytest.raises(ConfigError, match="Did you mean 'min_words'"):
        thresholds("web", {"min_word": 1})


def test_table_is_in_order_and_sourced() -> None:
    assert len(BY_NAME) == len(RULES) and all(rule.source for rule in RULES)
    a1 = {rule.name: rule.web for rule in RULES if "A1" in rule.source}
    assert [a1[f"duplicate_{n}_grams"] for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert [a1[f"top_{n}_gram"] for n in range(2, 5)] == [0.20, 0.18, 0.16]
    assert (a1["duplicate_lines"], a1["duplicate_line_characters"]) == (0.3, 0.2)


def test_empty_and_one_word_texts_have_measures() -> None:
    for text in ("", "x", "...", "\n\n"):
        measured = {rule.name: rule.measure(Words(text, "en")) for rule in RULES}
        assert all(0 <= value <= 3 for value in measured.values()), measured
        assert (measured["min_words"], measured["words_with_letter"]) == ((1, 1.0) if text == "x" else (0, 0.0))
        dropped = judge(Words(text, "en"), thresholds("web"))
        assert dropped is not None and dropped[0] == "min_words", "nothing so short is kept"
    assert not any(rule.measure(Words("", "en")) for rule in RULES)
