"""The preset `datatrove` against datatrove: committed figures of its filters, and its filters themselves where they are installed."""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import datatrove_figures as peer  # noqa: E402

from luyen.corpus.published import FILTERS, count_sentences  # noqa: E402
from luyen.corpus.quality import BY_NAME, judge, thresholds  # noqa: E402
from luyen.corpus.spacy_words import spacy_words  # noqa: E402
from luyen.corpus.words import Words, split_words  # noqa: E402

ROWS: list[dict[str, Any]] = json.loads(peer.GOLDEN.read_text(encoding="utf-8"))["texts"]
NAMES = [f"{row['language']}-{row['text'][:12]!r}" for row in ROWS]
WITHOUT_DATATROVE = any(importlib.util.find_spec(name) is None for name in ("datatrove", "spacy", "pyvi"))
RENAMED = {
    "duplicate_paragraphs": "dup_para_frac", "duplicate_paragraph_characters": "dup_para_char_frac",
    **{f"top_{size}_n_gram": f"top_{size}_gram" for size in (2, 3, 4)},
    **{f"c4_{name}": name for name in ("lorem_ipsum", "curly_bracket", "too_few_sentences")},
}  # fmt: skip


def reasons(text: str, language: str, split: Callable[[str], list[str]]) -> dict[str, str]:
    """Why our rules drop a text, for each of datatrove's filters and by its names."""
    words, limits = Words(text, language, split), thresholds("datatrove")
    failed = {name: judge(words, {rule: limits[rule] for rule in rules}) for name, rules in FILTERS.items()}
    return {name: RENAMED.get(found[0], found[0]) if found else "" for name, found in failed.items()}


def stored(row: dict[str, Any]) -> Callable[[str], list[str]]:
    """The words that datatrove made of the golden text and of its lines; other pieces of it are split anew."""
    return lambda piece: row["words"].get(piece) or split_words(piece)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_figures_and_reasons_are_datatroves_given_its_words(row: dict[str, Any]) -> None:
    assert peer.figures(row["text"], row["language"], stored(row)) == row["figures"]
    assert reasons(row["text"], row["language"], stored(row)) == row["reasons"]


def test_the_golden_texts_fail_each_filter_and_pass_it() -> None:
    for name in FILTERS:
        assert len({row["reasons"][name] for row in ROWS}) > 1
    assert {row["language"] for row in ROWS} == {"en", "vi", "ru"}


@pytest.mark.skipif(WITHOUT_DATATROVE, reason="datatrove, spacy and pyvi are not installed")
@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_datatrove_agrees_to_the_last_bit(row: dict[str, Any]) -> None:
    text, language = row["text"], row["language"]
    measured = peer.figures(text, language, peer.words_of(language))
    assert [found for rule, figure in measured.items() if (found := peer.disagreement(rule, text, language, figure))] == []
    assert reasons(text, language, peer.words_of(language)) == {name: peer.reason(name, text, language) for name in FILTERS}


def test_every_rule_of_the_preset_belongs_to_one_filter() -> None:
    assert sorted(thresholds("datatrove")) == sorted(name for rules in FILTERS.values() for name in rules)
    assert all(BY_NAME[name].datatrove is not None for rules in FILTERS.values() for name in rules)


def test_sentences_end_with_their_closing_signs() -> None:
    assert count_sentences(["He", "said", ":", '"', "No", "!", '"', "Then", "he", "left", "."]) == 2
    assert count_sentences(["one", "...", "two"]) == 1  # three dots are no full stop for the sentencizer
    assert count_sentences([]) == 0


@pytest.mark.parametrize("row", [row for row in ROWS if row["language"] != "vi"], ids=lambda row: row["text"][:8])
def test_our_words_are_spacys(row: dict[str, Any]) -> None:
    for text, words in row["words"].items():
        assert spacy_words(text, row["language"]) == words


def test_the_preset_takes_these_words_and_the_others_our_own() -> None:
    words = Words("I can't. (e.g. a/b)", "en")
    assert spacy_words(words.text) == ["I", "ca", "n't", ".", "(", "e.g.", "a", "/", "b", ")"]
    assert BY_NAME["gopher_short_doc"].measure(words) == 6 and BY_NAME["min_words"].measure(words) == 6
    assert BY_NAME["gopher_below_alpha_threshold"].measure(words) == 6 / 10


def test_hostile_pieces_cost_linear_time() -> None:
    started = time.process_time()
    pieces = ["(" * 1999, "a." * 999, "http://" + "a:@" * 600, "a-" * 999, "1" * 1999 + "$", "." * 1999, "@" * 1999, "a" * 100_000 + "!"]
    for piece in pieces:
        assert "".join(spacy_words(piece)) == piece
    assert time.process_time() - started < 10


def test_texts_without_words_have_reasons() -> None:
    for text in ("", "\n", "...", "  "):
        assert reasons(text, "en", split_words)["GopherQualityFilter"] == "gopher_short_doc"
    assert BY_NAME["gopher_enough_stop_words"].measure(Words("rien", "fr")) == float("inf")
