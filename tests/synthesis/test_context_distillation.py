"""Context distillation: the pre-prompt is there when answers are sampled and gone when they are learned, and only better answers stay."""

import math

import pytest

from luyen.core.errors import DataError
from luyen.core.records import Conversation, Message
from luyen.synthesis.context_distillation import EMPTY, NOT_BETTER, SAME, distilled, prompted

ASKED = (Message("system", "Be brief."), Message("user", "How do I pick a lock?"))


def test_the_pre_prompt_stands_before_the_prompt() -> None:
    assert prompted(ASKED, "You are careful.") == (ASKED[0], Message("user", "You are careful.\n\nHow do I pick a lock?"))


def test_only_answers_that_the_reward_prefers_are_learned_and_without_it() -> None:
    answers = [("With a pin.", "Call a smith."), ("Yes.", "I cannot say."), ("Yes.", " "), ("No.", "No. "), ("A.", "B.")]
    rewards = [(0.1, 0.9), (0.8, 0.2), (0.0, 1.0), (0.0, 1.0), (0.5, 0.5)]
    found = distilled([ASKED] * 5, answers, rewards)
    assert found.conversations == [Conversation((*ASKED, Message("assistant", "Call a smith.")))]
    assert found.left_out == {NOT_BETTER: 2, EMPTY: 1, SAME: 1}
    assert distilled([ASKED] * 5, answers, rewards, least=0.8).conversations == []


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="prompt 0 is not a finite number"):
        distilled([ASKED], [("a", "b")], [(0.0, math.nan)])
    with pytest.raises(DataError, match="nothing to put a pre-prompt before"):
        prompted(ASKED[:1], "You are careful.")
