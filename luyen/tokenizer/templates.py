"""Chat templates as functions from messages to pieces, and the same templates as Jinja text for other programs.

A piece is markup (written by the template) or content (written by somebody). Control tokens are looked for in markup
only, so a content can neither be one nor complete one, and what is trained on is known before a single token exists:
no answer is ever searched for in a string. Trained is what the model must produce itself after the generation prompt:
the assistant's content with the white space and end-of-turn token that belong to it.

The strings are those of the models' own code: Meta's llama `generation.py` (llama2), llama3 `tokenizer.py`, and the
`chat_template` of Qwen2.5, Qwen3, Zephyr, Gemma and Mistral Instruct v0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from luyen.core.errors import ConfigError, DataError, nearest
from luyen.core.records import Message
from luyen.tokenizer.jinja_texts import JINJA

QWEN_DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
JINJA_FILE = ".jinja"
"""Ending of a file that holds a chat template as Jinja text."""
NOBODY = -1
"""Message index of what belongs to no message: the beginning token and the generation prompt."""


@dataclass(frozen=True)
class Names:
    """Strings of the tokens that templates name by their office."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None

    def specials(self) -> dict[str, str]:
        """The variables that Jinja templates know them by; offices without a token are left undefined, as transformers does."""
        offices = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        return {office: name for office, name in offices.items() if name is not None}


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation."""

    text: str
    kind: Literal["markup", "content"]
    message: int
    trained: bool = False


Pieces = Callable[[Sequence[Message], Names, bool], Iterator[Piece]]


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation becomes pieces. `control` are the control tokens it writes, `ends` those that end an answer."""

    name: str
    pieces: Pieces
    jinja: str
    control: tuple[str, ...]
    ends: tuple[str, ...]

    def needs(self, names: Names) -> tuple[str, ...]:
        """Control tokens that a tokenizer must have; the offices `bos` and `eos` are filled in from `names`."""
        return _named(self.control, names)

    def end(self, names: Names) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return _named(self.ends, names)

    def text(self, messages: Sequence[Message], names: Names, *, add_generation_prompt: bool = False) -> str:
        """The conversation as one string, for people to read: never encode it."""
        return "".join(piece.text for piece in self.pieces(messages, names, add_generation_prompt))


def _named(tokens: Sequence[str], names: Names) -> tuple[str, ...]:
    offices = {"bos": names.bos or "bos", "eos": names.eos or "eos"}
    return tuple(offices.get(token, token) for token in tokens)


def template_named(name: str) -> ChatTemplate:
    """A template of the table. Raises ConfigError naming the nearest."""
    if name not in TEMPLATES:
        raise ConfigError("unknown chat template", found=repr(name), fix=nearest(name, TEMPLATES))
    return TEMPLATES[name]


def _markup(text: str, message: int, trained: bool = False) -> Piece:
    return Piece(text, "markup", message, trained)


def _content(text: str, message: int, trained: bool = False) -> Piece:
    return Piece(text, "content", message, trained)


def _luyen(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    """`<|bos|><|user|>U<|end|><|assistant|>A<|end|>`: control tokens and contents, no other markup, contents untouched."""
    _refuse_roles("luyen", messages, ("system", "user", "assistant", "tool"))
    yield _markup(names.bos or "", NOBODY)
    for index, message in enumerate(messages):
        trained = message.role == "assistant"
        yield _markup(f"<|{message.role}|>", index)
        yield _content(message.content, index, trained)
        yield _markup("<|end|>", index, trained)
    if prompt:
        yield _markup("<|assistant|>", NOBODY)


LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def _llama2(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    """`<s>[INST] <<SYS>>\\nS\\n<</SYS>>\\n\\nU [/INST] A </s>`, contents stripped; texts that hold a tag are refused, as Meta does."""
    _refuse_tags("llama2", messages, LLAMA2_TAGS)
    system, turns = _system_and_turns("llama2", messages)
    _refuse_unfinished("llama2", turns, prompt)
    for index, message in turns:
        if message.role == "assistant":
            yield from _answer(f" {message.content.strip()} ", index)
            yield _markup(names.eos or "", index, trained=True)
            continue
        yield _markup(f"{names.bos or ''}[INST] ", index)
        if system is not None and index == turns[0][0]:
            yield _markup("<<SYS>>\n", 0)
            yield _content(system, 0)
            # Meta strips the first prompt with its system part in front: the end of that text, but never its middle.
            text = message.content.rstrip()
            yield _markup("\n<</SYS>>\n\n" if text else "\n<</SYS>>", 0)
            yield _content(text, index)
        else:
            yield _content(message.content.strip(), index)
        yield _markup(" [/INST]", index)


def _answer(text: str, index: int) -> Iterator[Piece]:
    """An answer with a space on either side that the model must write itself."""
    yield _markup(" ", index, trained=True)
    yield _content(text.strip(), index, trained=True)
    yield _markup(" ", index, trained=True)


def _llama3(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    _refuse_roles("llama3", messages, ("system", "user", "assistant"))
    yield _markup(names.bos or "", NOBODY)
    for index, message in enumerate(messages):
        trained = message.role == "assistant"
        yield _markup(f"<|start_header_id|>{message.role}<|end_header_id|>\n\n", index)
        yield _content(message.content.strip(), index, trained)
        yield _markup("<|eot_id|>", index, trained)
    if prompt:
        yield _markup("<|start_header_id|>assistant<|end_header_id|>\n\n", NOBODY)


def _chatml(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    _refuse_roles("chatml", messages, ("system", "user", "assistant"))
    for index, message in enumerate(messages):
        trained = message.role == "assistant"
        yield _markup(f"<|im_start|>{message.role}\n", index)
        yield _content(message.content, index, trained)
        yield _markup("<|im_end|>", index, trained)
        yield _markup("\n", index)
    if prompt:
        yield _markup("<|im_start|>assistant\n", NOBODY)


def _qwen25(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    """ChatML, but a conversation without a system message gets Qwen's own: a trap for whoever trains on such data."""
    if not messages or messages[0].role != "system":
        yield _markup(f"<|im_start|>system\n{QWEN_DEFAULT_SYSTEM}<|im_end|>\n", NOBODY)
    yield from _chatml(messages, names, prompt)


def _zephyr(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    _refuse_roles("zephyr", messages, ("system", "user", "assistant"))
    _refuse_tags("zephyr", messages, ("<|system|>", "<|user|>", "<|assistant|>"))
    for index, message in enumerate(messages):
        trained = message.role == "assistant"
        yield _markup(f"<|{message.role}|>\n", index)
        yield _content(message.content, index, trained)
        yield _markup(names.eos or "", index, trained)
        yield _markup("\n", index)
    if prompt:
        yield _markup("<|assistant|>\n", NOBODY)


def _gemma(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    _refuse_roles("gemma", messages, ("user", "assistant"))
    turns = list(enumerate(messages))
    _refuse_order("gemma", turns)
    yield _markup(names.bos or "", NOBODY)
    for index, message in turns:
        trained = message.role == "assistant"
        yield _markup(f"<start_of_turn>{'model' if trained else 'user'}\n", index)
        yield _content(message.content.strip(), index, trained)
        yield _markup("<end_of_turn>", index, trained)
        yield _markup("\n", index)
    if prompt:
        yield _markup("<start_of_turn>model\n", NOBODY)


def _mistral(messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
    """`<s>[INST] U [/INST] A</s>[INST] ...`: one beginning token, no system role, contents untouched (Instruct v0.1)."""
    _refuse_roles("mistral", messages, ("user", "assistant"))
    _refuse_tags("mistral", messages, ("[INST]", "[/INST]"))
    turns = list(enumerate(messages))
    _refuse_order("mistral", turns)
    _refuse_unfinished("mistral", turns, prompt)
    yield _markup(names.bos or "", NOBODY)
    for index, message in turns:
        if message.role == "assistant":
            yield _markup(" ", index, trained=True)
            yield _content(message.content, index, trained=True)
            yield _markup(names.eos or "", index, trained=True)
        else:
            yield _markup("[INST] ", index)
            yield _content(message.content, index)
            yield _markup(" [/INST]", index)


def _refuse_roles(name: str, messages: Sequence[Message], known: tuple[str, ...]) -> None:
    if not messages:
        raise DataError("a conversation has no message", expected="at least one")
    for index, message in enumerate(messages):
        if message.role not in known:
            raise DataError(f"the template {name!r} has no role {message.role!r} (message {index})", expected=", ".join(known))


def _refuse_tags(name: str, messages: Sequence[Message], tags: tuple[str, ...]) -> None:
    for index, message in enumerate(messages):
        for tag in tags:
            if tag in message.content:
                raise DataError(
                    f"message {index} holds {tag!r}, which in the template {name!r} is plain text that changes who speaks",
                    fix="Remove the tag from the message.",
                )


def _refuse_order(name: str, turns: Sequence[tuple[int, Message]]) -> None:
    if not turns:
        raise DataError("a conversation has no message beside the system's", expected="at least one")
    for place, (index, message) in enumerate(turns):
        wanted = "assistant" if place % 2 else "user"
        if message.role != wanted:
            found = f"{message.role} as message {index}"
            raise DataError(f"the template {name!r} alternates user and assistant", found=found, expected=wanted)


def _refuse_unfinished(name: str, turns: Sequence[tuple[int, Message]], prompt: bool) -> None:
    if prompt and turns[-1][1].role != "user":
        raise DataError(f"the template {name!r} continues only after a user's message", found=f"{turns[-1][1].role} last")


def _system_and_turns(name: str, messages: Sequence[Message]) -> tuple[str | None, list[tuple[int, Message]]]:
    """The system text, if any, and the other messages with their index, which alternate."""
    _refuse_roles(name, messages, ("system", "user", "assistant"))
    turns = list(enumerate(messages))
    system = turns.pop(0)[1].content if messages[0].role == "system" else None
    _refuse_order(name, turns)
    return system, turns


def _table(name: str, pieces: Pieces, control: tuple[str, ...], ends: tuple[str, ...]) -> ChatTemplate:
    return ChatTemplate(name, pieces, JINJA[name], control, ends)


TEMPLATES: dict[str, ChatTemplate] = {
    "luyen": _table("luyen", _luyen, ("bos", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"), ("<|end|>",)),
    "llama2": _table("llama2", _llama2, ("bos", "eos"), ("eos",)),
    "llama3": _table("llama3", _llama3, ("bos", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ("<|eot_id|>",)),
    "chatml": _table("chatml", _chatml, ("<|im_start|>", "<|im_end|>"), ("<|im_end|>",)),
    "qwen2.5": _table("qwen2.5", _qwen25, ("<|im_start|>", "<|im_end|>"), ("<|im_end|>",)),
    "zephyr": _table("zephyr", _zephyr, ("eos",), ("eos",)),
    "gemma": _table("gemma", _gemma, ("bos", "<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>",)),
    "mistral": _table("mistral", _mistral, ("bos", "eos"), ("eos",)),
}
