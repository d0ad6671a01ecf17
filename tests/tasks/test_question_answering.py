"""Scores by hand, and what is no question file."""

import json
import unicodedata
from pathlib import Path

import pytest

from luyen.core.errors import DamagedFile, DataError
from luyen.core.manifest import seal
from luyen.core.records import Message
from luyen.tasks.question_answering import (
    Answer,
    Example,
    QuestionAnswering,
    admits,
    chrf,
    estimate,
    exact_match,
    normalise,
    read_examples,
    summarise,
    token_f1,
)

ADMISSIONS = [r"(?i)\bdo not know\b"]


def test_normalise_removes_case_punctuation_and_space_but_no_symbol_and_no_article() -> None:
    assert normalise("  The  cat, sat: (on) a MAT. ") == "the cat sat on a mat"
    assert normalise("x + y = z") == "x + y = z"
    assert normalise(unicodedata.normalize("NFD", "Tiếng Việt!")) == "tiếng việt"
    assert normalise("Straße") == normalise("STRASSE")


def test_exact_match() -> None:
    assert exact_match("return the Sine of x", "Return the sine of x.") == 1.0
    assert exact_match("Return the cosine of x.", "Return the sine of x.") == 0.0
    assert exact_match("return x + y", "Return x - y.") == 0.0
    assert exact_match("", "") == 1.0
    signs = ["a / b", "a // b", "a % b", "a & b", "a * b", "a @ b", "a[b]", "a b", "-a", "~a", "a == b", "a != b"]
    assert [(x, y) for x in signs for y in signs if x != y and exact_match(f"Same as {x}.", f"Same as {y}.")] == []


def test_token_f1_by_hand() -> None:
    # Common words: the, cat (2). Precision 2/3, recall 2/4, F1 = 2 * (2/3 * 1/2) / (2/3 + 1/2) = 4/7.
    assert token_f1("the black cat", "the cat sat down") == pytest.approx(4 / 7)
    # A repeated word counts as often as both sides have it: common 1, F1 = 2 * 1 / (2 + 1).
    assert token_f1("dog dog", "Dog.") == pytest.approx(2 / 3)
    assert token_f1("no", "yes") == 0.0
    assert token_f1("", "yes") == 0.0
    assert token_f1("...", "") == 1.0


def test_chrf_bounds_and_one_value_by_hand() -> None:
    assert chrf("Return x.", "Return x.") == pytest.approx(100.0)
    assert chrf("qqq", "zzz") == 0.0
    # "ab" against "ac": one of two letters agrees, the only bigram does not. Orders beyond the texts' length are left out, so
    # precision = recall = (1/2 + 0/1) / 2 = 1/4 and the F-score of two equal values is that value.
    assert chrf("ab", "ac") == pytest.approx(25.0)


def test_score_of_a_question_with_an_answer() -> None:
    task = QuestionAnswering("toy", [], ADMISSIONS)
    example = Example("1", (Message("user", "?"),), "Return x.")
    assert task.score(example, Answer("return x", stopped=False)) == {
        "exact_match": 1.0, "f1": 1.0, "chrf": chrf("return x", "Return x."), "said_unknown": 0.0, "stopped": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "invented", "said_unknown"),
    [("It sorts a list.", 1.0, 0.0), ("I do not know it.", 0.0, 1.0), ("", 0.0, 0.0), (" .\n", 0.0, 0.0), ("I know it well.", 1.0, 0.0)],
)
def test_inventing_is_any_assertion_about_a_name_that_does_not_exist(answer: str, invented: float, said_unknown: float) -> None:
    task = QuestionAnswering("toy", [], ADMISSIONS)
    score = task.score(Example("1", (Message("user", "?"),), ""), Answer(answer))
    assert score == {"invented": invented, "said_unknown": said_unknown, "stopped": 1.0}
    assert admits(answer, ADMISSIONS) == bool(said_unknown)


def test_estimate_is_seeded_and_holds_the_mean() -> None:
    values = [1.0] * 60 + [0.0] * 40
    first = estimate(values, seed=1)
    assert first == estimate(values, seed=1) != estimate(values, seed=2)
    assert first.mean == pytest.approx(0.6)
    # Normal approximation of a share of 0.6 among 100: 0.6 +- 1.96 * sqrt(0.24 / 100) = 0.504 to 0.696.
    assert first.low == pytest.approx(0.504, abs=0.03)
    assert first.high == pytest.approx(0.696, abs=0.03)
    assert estimate([0.25]).low == estimate([0.25]).high == 0.25
    with pytest.raises(DataError, match="no values"):
        estimate([])


def test_summarise_averages_what_each_row_has() -> None:
    summary = summarise([{"f1": 1.0}, {"f1": 0.0, "chrf": 50.0}])
    assert {name: value.mean for name, value in summary.items()} == {"f1": 0.5, "chrf": 50.0}


def test_read_examples(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    row = {"id": "a", "messages": [{"role": "user", "content": "Why?"}], "answer": "So.", "set": "taught", "source": "d", "entry": "e"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (example,) = read_examples(path)
    assert (example.question, example.answer, dict(example.meta)) == ("Why?", "So.", {"set": "taught", "source": "d", "entry": "e"})
    path.write_text(json.dumps({"id": "a", "messages": []}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1 is no question.*answer"):
        read_examples(path)
    path.write_text(json.dumps({**row, "messages": [{"role": "assistant", "content": "x"}]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="does not end with a question"):
        read_examples(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no questions"):
        read_examples(path)


def test_questions_of_a_sealed_stage_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    row = {"id": "a", "messages": [{"role": "user", "content": "Why?"}], "answer": "So.", "set": "taught", "source": "d", "entry": "e"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    seal(tmp_path, "questions")
    assert len(read_examples(path)) == 1
    path.write_text(json.dumps({**row, "answer": "No."}) + "\n", encoding="utf-8")
    with pytest.raises(DamagedFile, match=r"evaluation\.jsonl: does not have the sha256"):
        read_examples(path)
