"""What any score of written answers looks like to who learns from it or chooses by it: a reward model, a task, a program, a mixture.

An answer is a conversation's last turn and `prompt` holds the turns before it. A reward that must know the right answer finds it in the
example that the prompt came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from luyen.core.errors import DataError
from luyen.core.records import Message
from luyen.tasks.question_answering import Example


@dataclass(frozen=True)
class Written:
    """An answer that a model wrote to a prompt."""

    id: str
    """Of the prompt's sample, for messages and files."""
    prompt: tuple[Message, ...]
    """The conversation up to and including the question."""
    answer: str
    stopped: bool = True
    """Whether it ended by itself."""
    example: Example | None = None
    """The task's example that the prompt is, with the right answer."""


class Reward(Protocol):
    """A score of answers: higher is better."""

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order."""


def checked(reward: Reward, written: Sequence[Written]) -> list[float]:
    """The rewards of answers. DataError that names the first answer whose reward is missing or not finite: nothing is learned from it."""
    scores = reward.score(written)
    if len(scores) != len(written):
        raise DataError("a reward gave another number of scores than it was given answers", found=len(scores), expected=len(written))
    for item, score in zip(written, scores, strict=True):
        if not math.isfinite(score):
            raise DataError(f"the reward of an answer to {item.id} is not a finite number", found=f"{score} for {item.answer[:80]!r}",
                            expected="a finite number", fix="Look at what scores it; no update was made from this batch.")  # fmt: skip
    return scores
