"""Preferences without a person: which answer is the better one, by how much, and that nothing is lost or learned from the evaluation."""

from pathlib import Path
from typing import Any

import pytest

from luyen.core.config import load
from luyen.core.errors import DataError
from luyen.core.records import Document, Message
from luyen.synthesis.preferences import (
    ADMISSION,
    INVENTION,
    RIGHT,
    Candidate,
    Compared,
    as_pair,
    best_and_worst,
    grade,
    judged,
    spoilt,
    with_admissions,
)  # fmt: skip
from luyen.synthesis.question_answer import SynthConfig, generate
from luyen.tasks.question_answering import Example, chrf
from luyen.tasks.template import Template


@pytest.fixture
def made(documents: list[Document], template: Path) -> tuple[list[Example], Template]:
    """Questions that were taught, and their template."""
    questions = generate(documents, load(SynthConfig, {"template": str(template), "invented": 5, "grounded": 0, "multi_turn": 0}))
    rows = [row for row in questions.train if row["source"] != "conversation"]
    return [example(row, number) for number, row in enumerate(rows)], questions.template


def example(row: dict[str, Any], number: int) -> Example:
    messages = (Message("user", row["messages"][0]["content"]),)
    return Example(str(number), messages, row["messages"][1]["content"], {"source": row["source"], "entry": row["entry"]})


def test_a_spoilt_answer_is_worth_its_likeness_to_the_right_one(made: tuple[list[Example], Template]) -> None:
    questions, _ = made
    compared = spoilt(questions, ["other", "cut", "shuffled"], 30, seed=1)
    assert len(compared) == 30
    ways = {item.answers[1].made for item in compared}
    assert ways == {"other", "cut", "shuffled"}
    for item in compared:
        right, wrong = item.answers
        assert right == Candidate(item.example.answer, RIGHT, 1.0) and item.domain == "helpfulness"
        assert wrong.score == chrf(wrong.text, right.text) / 100 < 1
        if wrong.made == "cut":
            assert right.text.startswith(wrong.text) and len(wrong.text.split()) == len(right.text.split()) // 2
        if wrong.made == "shuffled":
            assert sorted(wrong.text.split()) == sorted(right.text.split()) and wrong.text != right.text
        if wrong.made == "other":
            of_group = {question.answer for question in questions if question.meta["source"] == item.example.meta["source"]}
            assert wrong.text in of_group - {right.text}
    assert spoilt(questions, ["other", "cut", "shuffled"], 30, seed=1) == compared != spoilt(questions, ["other"], 30, seed=2)


def test_an_answer_too_short_to_cut_is_spoilt_in_another_way() -> None:
    questions = [Example(str(n), (Message("user", f"{n}?"),), text) for n, text in enumerate(["one", "two"])]
    compared = spoilt(questions, ["cut", "shuffled", "other"], None, seed=0)
    assert {(item.example.answer, item.answers[1].text, item.answers[1].made) for item in compared} == {
        ("one", "two", "other"), ("two", "one", "other"),
    }  # fmt: skip
    made = best_and_worst(spoilt(questions, ["cut"], None, seed=0), 0.0)
    assert made.rows == [] and made.account["left_out"] == {"fewer than two different answers": 2}


def test_made_up_names_are_admitted_and_taught_entries_are_not(made: tuple[list[Example], Template]) -> None:
    questions, template = made
    compared = with_admissions(questions, template, ["tools.apple_bridge", "works.desker"], 4, seed=0)
    invented, taught = compared[:2], compared[2:]
    assert [item.example.meta["entry"] for item in invented] == ["tools.apple_bridge", "works.desker"] and len(taught) == 4
    for item in invented:
        name = item.example.meta["entry"]
        assert name in item.example.question and item.example.answer == "" and item.safety == "chosen_safe"
        good, bad = item.answers
        assert good == Candidate(f"I do not know {name}.", ADMISSION, 1.0)
        assert bad.made == INVENTION and bad.score == 0.0 and "do not know" not in bad.text
    for item in taught:
        right, refusal = item.answers
        assert right == Candidate(item.example.answer, RIGHT, 1.0) and item.safety == "both_safe"
        assert refusal == Candidate(f"I do not know {item.example.meta['entry']}.", ADMISSION, 0.0)
        assert item.example.meta["source"] in ("what", "call")  # the reverse question names no entry to admit
    with pytest.raises(DataError, match="no taught question"):
        with_admissions([item for item in questions if item.meta["source"] == "reverse"], template, ["a.b"], 1, seed=0)


def compared(*answers: Candidate) -> Compared:
    return Compared(Example("7", (Message("user", "What?"),), "right"), "helpfulness", answers)


def test_the_best_is_chosen_over_the_worst_and_graded_by_the_distance() -> None:
    three = compared(Candidate("b", "m", 0.5), Candidate("a", "m", 0.9), Candidate("c", "n", 0.45), Candidate("d", "n"))
    close = compared(Candidate("b", "m", 0.5), Candidate("a", "m", 0.52))
    alone = compared(Candidate("b", "m", 0.5), Candidate("d", "n"))
    made = best_and_worst([three, close, alone], 0.05)
    (row,) = made.rows
    assert row["chosen"] == [{"role": "assistant", "content": "a"}] and row["rejected"] == [{"role": "assistant", "content": "c"}]
    assert row["prompt"] == [{"role": "user", "content": "What?"}]
    assert (row["grade"], row["margin"], row["domain"], row["chosen_by"], row["rejected_by"]) == ("better", 0.45, "helpfulness", "m", "n")
    account = made.account
    assert account["questions"] == 3 == account["pairs"] + sum(account["left_out"].values())
    assert account["left_out"] == {"fewer than two different answers": 1, "no answer is better than the others": 1}
    assert [grade(value) for value in (1.0, 0.6, 0.59, 0.2, 0.19, 0.0)] == [
        "significantly_better", "significantly_better", "better", "slightly_better", "negligibly_better", "negligibly_better",
    ]  # fmt: skip


def test_the_same_words_are_one_answer() -> None:
    item = compared(Candidate("It is.", RIGHT, 1.0)).with_answers([Candidate("it is", "m", 0.9), Candidate("No.", "m", 0.1)])
    assert [answer.text for answer in item.answers] == ["It is.", "No."]


def test_what_no_data_file_may_hold_is_no_answer() -> None:
    more = [Candidate(text, "m", 0.1) for text in ("a\0b", " ", "No.")]
    assert [one.text for one in compared(Candidate("It is.", RIGHT, 1.0)).with_answers(more).answers] == ["It is.", "No."]


def test_a_judge_without_a_clear_verdict_makes_no_pair() -> None:
    items = [compared(Candidate(f"a{n}", "m"), Candidate(f"b{n}", "n")) for n in range(3)]
    made = judged(items, [1.0, None, 0.0])
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made.rows] == [("a0", "b0"), ("b2", "a2")]
    assert "grade" not in made.rows[0] and "margin" not in made.rows[0]
    assert made.account["left_out"] == {"the judge does not say the same both ways round": 1}
    assert as_pair(items[0]).chosen == (Message("assistant", "a0"),)
