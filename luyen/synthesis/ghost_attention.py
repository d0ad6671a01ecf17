"""Ghost Attention: an instruction that holds for a whole conversation (Llama 2, arXiv:2307.09288, section 3.3).

A conversation [u1, a1, ..., un, an] is to obey an instruction that the user gives once, in the beginning. Answers are sampled with the
instruction before every message of the user (`asked`), so that none is forgotten. What is trained has it before the first message alone
(`learned`), and the loss is 0 on every token of the turns before the last one (`last_turn_alone`), whose answers need not be those
that the model would give without the instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luyen.core.errors import DataError
from luyen.core.records import Conversation, Message
from luyen.tokenizer.chat import Rendered

JOINT = "\n\n"
"""Between the instruction and what the user says."""


def asked(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The turns so far with the instruction before every message of the user: what an answer is sampled from. DataError where none asks."""
    _check(messages, instruction)
    return tuple(_with(turn, instruction) if turn.role == "user" else turn for turn in messages)


def learned(messages: Sequence[Message], instruction: str) -> Conversation:
    """The same turns, without instruction, as a conversation to learn: the instruction stands before the user's first message alone.

    DataError where the last turn is no answer.
    """
    _check(messages, instruction)
    if messages[-1].role != "assistant":
        raise DataError("a conversation to learn does not end with an answer", found=messages[-1].role, expected="assistant")
    first = next(place for place, turn in enumerate(messages) if turn.role == "user")
    return Conversation((*messages[:first], _with(messages[first], instruction), *messages[first + 1 :]))


def last_turn_alone(rendered: Rendered) -> Rendered:
    """A rendered conversation of which only the last trained turn is trained: the loss is 0 on all earlier ones."""
    of_answers = [message for message, trained in zip(rendered.message_index, rendered.trained, strict=True) if trained]
    last = max(of_answers, default=-1)
    trained = [was and message == last for message, was in zip(rendered.message_index, rendered.trained, strict=True)]
    return replace(rendered, trained=trained)


def _with(turn: Message, instruction: str) -> Message:
    return Message(turn.role, f"{instruction}{JOINT}{turn.content}")


def _check(messages: Sequence[Message], instruction: str) -> None:
    if not instruction.strip():
        raise DataError("the instruction is empty", expected="what holds for the whole conversation")
    if not any(turn.role == "user" for turn in messages):
        raise DataError("nobody asks in the conversation", found=f"{len(messages)} turns", expected="a message of the user")
