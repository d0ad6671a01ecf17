"""How right an answer is, as one number, by what its question's data knows.

`right`: exact_match where there is an answer, said_unknown where there is none to give. `number`: whether the last number of the answer
is that of the reference, which in GSM8K (Cobbe et al., 2021, arXiv:2110.14168) stands behind `####`: word problems are judged by their
result, not by the way to it. `invented` is turned round, so that more is better throughout.
"""

from __future__ import annotations

import re
from decimal import Decimal

from luyen.tasks.question_answering import Answer, Example, QuestionAnswering

RESULT = "####"
"""Behind it GSM8K has the result alone."""
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d)")
_LONGEST = 40
"""Digits of a number that is looked at."""


def measured(task: QuestionAnswering, example: Example, said: Answer, measure: str) -> float | None:
    """The measure of an answer, higher is better; None where it says nothing of such a question."""
    if measure == "number":
        wanted = last_number(example.answer)
        return None if wanted is None else float(last_number(said.text) == wanted)
    found = task.score(example, said)
    if measure == "right":
        return found["exact_match"] if example.answer else found["said_unknown"]
    if measure == "invented":
        return None if example.answer else 1 - found["invented"]
    return found.get(measure)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, of what stands behind the last `####` where there is one; None where there is none.

    `1,234` is 1234 and `3.0` is 3; a dollar sign before it and a full stop or per cent sign behind it do not matter.
    """
    found = [item for item in _NUMBER.findall(text.rpartition(RESULT)[2]) if len(item) <= _LONGEST]
    return Decimal(found[-1].replace(",", "")).normalize() if found else None
