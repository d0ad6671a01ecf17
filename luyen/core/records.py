"""The typed records that pass between rooms. All are frozen; text is always a str."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Page:
    """One fetched page as the crawler keeps it."""

    url: str
    """Address after redirects; for a server that the stage itself started, with its stable name instead of the port."""
    body: bytes
    content_type: str
    status: int
    fetched_at: str
    """UTC, ISO 8601."""
    sha256: str
    """Of the body, hex."""


@dataclass(frozen=True)
class Document:
    """Clean text of one page or file."""

    id: str
    text: str
    url: str = ""
    title: str = ""
    language: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Plain:
    """Text to model as it is."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns; what is trained on are the assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """Prompt and completion as raw text, no chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Preference:
    """Two answers to the same conversation, the first preferred, optionally by how much."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None
    grade: str | None = None
    """significantly_better | better | slightly_better | negligibly_better (Llama 2, table 27)."""
    safety: str | None = None
    """chosen_safe (and the other not) | both_safe | both_unsafe (Llama 2, section 3.2.1)."""


@dataclass(frozen=True)
class Feedback:
    """One answer judged good or bad on its own."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool


@dataclass(frozen=True)
class Labelled:
    """Text, or a pair of texts, with a class."""

    text: str
    label: str
    text_pair: str | None = None


@dataclass(frozen=True)
class Tagged:
    """Words with one tag each (CoNLL)."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Extractive:
    """A question whose answers are spans of the context (SQuAD)."""

    question: str
    context: str
    answers: tuple[str, ...]


Record = Plain | Conversation | Completion | Preference | Feedback | Labelled | Tagged | Extractive
