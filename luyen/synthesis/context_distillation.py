"""Context distillation for safety (Llama 2, arXiv:2307.09288, section 4.2.4; Askell et al., 2021, arXiv:2112.00861).

Answers are sampled with a pre-prompt before the prompt ("You are a safe and responsible assistant."), and learned without it, so that the
model answers as if it stood there. On prompts that need no caution a pre-prompt makes answers vague or refuses them, so the paper asks
its safety reward model of both answers, and takes the one with the pre-prompt only where that is the better one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from luyen.core.errors import DataError
from luyen.core.records import Conversation, Message

JOINT = "\n\n"
"""Between the pre-prompt and what is asked."""
NOT_BETTER, EMPTY, SAME = "the answer with the pre-prompt is not worth more", "an empty answer", "both answers are the same"


@dataclass
class Distilled:
    """What is learned, and why the rest is not: prompts = kept + left out."""

    conversations: list[Conversation] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def prompted(messages: Sequence[Message], pre_prompt: str) -> tuple[Message, ...]:
    """The prompt with the pre-prompt before it, in front of the first message that is no system's. DataError where there is none."""
    first = next((place for place, turn in enumerate(messages) if turn.role != "system"), None)
    if first is None or not pre_prompt.strip():
        raise DataError("nothing to put a pre-prompt before, or nothing to put", found=f"{len(messages)} turns, {pre_prompt!r}")
    turn = messages[first]
    return (*messages[:first], Message(turn.role, f"{pre_prompt}{JOINT}{turn.content}"), *messages[first + 1 :])


def distilled(
    prompts: Sequence[Sequence[Message]], answers: Sequence[tuple[str, str]], rewards: Sequence[tuple[float, float]], least: float = 0.0
) -> Distilled:  # fmt: skip
    """Prompts without pre-prompt and the answers that were sampled with it, where these are worth more by over `least`.

    `answers` and `rewards` hold a pair for each prompt, the one without pre-prompt first; both answers are scored behind the prompt as it
    is learned. DataError names a prompt whose reward is not finite.
    """
    found = Distilled()
    for number, (prompt, (plain, better), (before, after)) in enumerate(zip(prompts, answers, rewards, strict=True)):
        if not (math.isfinite(before) and math.isfinite(after)):
            raise DataError(f"a reward of prompt {number} is not a finite number", found=f"{before} and {after}")
        reason = EMPTY if not better.strip() else SAME if plain.strip() == better.strip() else NOT_BETTER if after - before <= least else ""
        if reason:
            found.left_out[reason] += 1
        else:
            found.conversations.append(Conversation((*prompt, Message("assistant", better))))
    return found
