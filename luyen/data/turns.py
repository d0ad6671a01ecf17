"""Conversations as the world writes them, as `Message`s: role names, HH transcripts, `### Human:` text, the order of roles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luyen.core.errors import nearest
from luyen.core.records import Message, Role
from luyen.data.source import QUOTED, shown

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip

# Which role may follow which; "" is the start. Tool results follow the assistant's call, several calls may be answered in a row.
_FOLLOWS: Mapping[str, tuple[Role, ...]] = {
    "": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool"),
}  # fmt: skip


class BadRow(Exception):
    """A row that does not hold what its form promises; the text is the reason."""


def messages(value: Any, what: str = "messages") -> tuple[Message, ...]:
    """Turns from a list of {"role", "content"} or {"from", "value"}, one such object, or the JSON text of a list (from a table)."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(f"{what} is text that is not JSON") from error
        except RecursionError as error:
            raise BadRow(f"{what} is text nested too deeply") from error
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(f"{what} is {kind(value)}, not a list of turns")
    if not value:
        raise BadRow(f"{what} is empty")
    return tuple(_message(item, f"{what}[{index}]") for index, item in enumerate(value))


def _message(item: Any, what: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow(f"{what} is {kind(item)}, not an object with role and content")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if role is None or ("content" not in item and "value" not in item):
        raise BadRow(f"{what} has {', '.join(map(shown, list(item)[:8])) or 'nothing'}, not role and content (or from and value)")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BadRow(f"{what} has the role {shown(role)}. {nearest(str(role)[:QUOTED], ROLES)}")
    return Message(ROLES[role.lower()], _content(content, item.get("tool_calls"), what))


def _content(content: Any, tool_calls: Any, what: str) -> str:
    """The text of a turn: a string, text parts joined, or the JSON of its tool calls."""
    parts: list[str] = []
    if isinstance(content, str):
        parts = [content]
    elif isinstance(content, list):
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise BadRow(f"{what} has a part that is not text")
            parts.append(part["text"])
    elif content is not None or not tool_calls:
        raise BadRow(f"{what}: the content is {kind(content)}, not text")
    if tool_calls:
        parts.append(json.dumps(tool_calls, ensure_ascii=False))
    return "".join(parts)


def kind(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "a text"), (int, "a number"), (float, "a number"), (Mapping, "an object"), (Sequence, "a list"))
    return next((name for type_, name in names if isinstance(value, type_)), type(value).__name__)


def check_turns(turns: Sequence[Message], *, last: Role = "assistant") -> tuple[Message, ...]:
    """The turns, if roles alternate as they should, none is empty and the last is `last`'s; else BadRow."""
    before = ""
    for index, turn in enumerate(turns):
        if turn.role not in _FOLLOWS[before]:
            after = f"after {before}" if before else "at the start"
            raise BadRow(f"wrong role order: turn {index + 1} is {turn.role} {after}, not {' or '.join(_FOLLOWS[before])}")
        if not turn.content.strip():
            raise BadRow("an empty answer" if turn.role == "assistant" else f"an empty {turn.role} turn")
        before = turn.role
    if before != last and not (last == "user" and before == "tool"):
        raise BadRow(f"wrong role order: the last turn is {before or 'missing'}, not {last}")
    return tuple(turns)


_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HASH_TURN = re.compile(r"###\s*(Human|User|Instruction|Assistant|Response|System)\s*:\s*")
_HASH_ROLES: Mapping[str, Role] = {
    "Human": "user", "User": "user", "Instruction": "user", "Assistant": "assistant", "Response": "assistant", "System": "system",
}  # fmt: skip


def is_transcript(text: Any) -> bool:
    """Whether a text is an Anthropic HH transcript (Bai et al., 2022, arXiv:2204.05862): Human: ... Assistant: ..."""
    return isinstance(text, str) and text.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in text


def transcript(text: str) -> tuple[Message, ...]:
    """Turns of an HH transcript, white space around each removed."""
    names = {"Human": "user", "Assistant": "assistant"}
    return _split(text.lstrip("\n"), _HH_TURN, {name: ROLES[role] for name, role in names.items()}, "Human:")


def is_hash_text(text: Any) -> bool:
    """Whether a text is `### Human: ... ### Assistant: ...` (openassistant-guanaco)."""
    found = [match.group(1) for match in _HASH_TURN.finditer(text)] if isinstance(text, str) and "###" in text else []
    return bool(found) and {_HASH_ROLES[name] for name in found} >= {"user", "assistant"} and text.lstrip().startswith("###")


def hash_turns(text: str) -> tuple[Message, ...]:
    """Turns of a `### Human:` text, white space around each removed."""
    return _split(text, _HASH_TURN, _HASH_ROLES, "### Human:")


def _split(text: str, pattern: re.Pattern[str], roles: Mapping[str, Role], start: str) -> tuple[Message, ...]:
    matches = list(pattern.finditer(text))
    if not matches or text[: matches[0].start()].strip():
        raise BadRow(f"text does not start with {start}")
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return tuple(Message(roles[match.group(1)], text[match.end() : end].strip()) for match, end in zip(matches, ends, strict=True))
