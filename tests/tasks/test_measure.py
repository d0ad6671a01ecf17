"""Word problems are judged by their last number, however it is written."""

from __future__ import annotations

from decimal import Decimal

import pytest

from luyen.core.records import Message
from luyen.tasks.measure import last_number, measured
from luyen.tasks.question_answering import Answer, Example, QuestionAnswering


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48+24=72\n#### 72", 72), ("#### 1,234", 1234), ("The answer is $18.", 18), ("It costs 3.50 dollars", Decimal("3.5")),
        ("5-3", 3), ("it is -4", -4), ("12 or 13%", 13), ("10cm", 10), ("so 3.0", 3), ("none", None), ("", None), ("see v1.3", None),
        ("#### 5 and then #### 7 done", 7), ("1" * 50, None),
    ],
)  # fmt: skip
def test_the_last_number(text: str, number: object) -> None:
    assert last_number(text) == number


def test_number_says_nothing_without_a_reference() -> None:
    task, turns = QuestionAnswering("t", ()), (Message("user", "How many?"),)
    assert measured(task, Example("a", turns, "#### 1,000"), Answer("It makes 1000.00."), "number") == 1.0
    assert measured(task, Example("a", turns, "#### 1,000"), Answer("I cannot say."), "number") == 0.0
    assert measured(task, Example("a", turns, ""), Answer("4"), "number") is None
