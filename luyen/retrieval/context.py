"""How passages are given to a model: as a system message before the question."""

from __future__ import annotations

from collections.abc import Sequence

from luyen.core.records import Message


def context_message(passages: Sequence[str]) -> Message:
    """The system message that holds passages for the model to answer from."""
    return Message("system", "\n\n".join(passages))
