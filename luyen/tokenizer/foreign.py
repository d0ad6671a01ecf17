"""Chat templates of folders that others made: Jinja text to a function from messages to pieces.

Known templates are recognised by what they render. Of any other, the parts written by the template and the contents
are told apart by rendering it with a distinct mark in place of every content; white space that it trims from contents is
found by rendering marks with space around them. The real conversation is then rendered too, and unless the pieces spell
exactly that string the conversation is refused: better no ids than ids with the wrong mask.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from luyen.core.errors import DataError, LuyenError
from luyen.core.records import Message, Role
from luyen.tokenizer.markup import split_control
from luyen.tokenizer.sandbox import render_jinja
from luyen.tokenizer.templates import NOBODY, TEMPLATES, ChatTemplate, Names, Piece

_MARK = re.compile(r"LuyenContent(\d+)EndOfContent")
_PAD_LEFT, _PAD_RIGHT = " \n\t ", " \t\n "
_PROBES: tuple[tuple[tuple[Role, ...], bool], ...] = (
    (("user",), True),
    (("user",), False),
    (("system", "user"), True),
    (("user", "assistant"), False),
    (("system", "user", "assistant"), False),
    (("user", "assistant", "user"), True),
    (("system", "user", "assistant", "user", "assistant"), False),
    (("user", "assistant", "system", "user"), True),
    (("assistant", "user"), False),
    (("user", "user"), True),
)


def recognise(jinja: str, names: Names, control: Mapping[str, int]) -> ChatTemplate:
    """The template of the table that renders like this Jinja text, else one made from the text. It keeps the text itself.

    control: control tokens of the tokenizer. Raises ModelError when the text is no Jinja.
    """
    probes = [_probe(roles) for roles, _ in _PROBES]
    outcomes = [_outcome_of_jinja(jinja, names, probe, prompt) for probe, (_, prompt) in zip(probes, _PROBES, strict=True)]
    for known in TEMPLATES.values():
        usable = all(token in control for token in known.needs(names))
        if usable and all(
            _outcome(known, names, probe, prompt) == outcome for probe, (_, prompt), outcome in zip(probes, _PROBES, outcomes, strict=True)
        ):
            return replace(known, jinja=jinja)
    separated = Separated(jinja, tuple(control.items()))
    return ChatTemplate("foreign", separated.pieces, jinja, (), separated.ends(names))


def _probe(roles: Sequence[Role]) -> list[Message]:
    return [Message(role, f"\n  Text {index}\n of it \n") for index, role in enumerate(roles)]


def _outcome(template: ChatTemplate, names: Names, messages: Sequence[Message], prompt: bool) -> str | None:
    try:
        return template.text(messages, names, add_generation_prompt=prompt)
    except DataError:
        return None


def _outcome_of_jinja(jinja: str, names: Names, messages: Sequence[Message], prompt: bool) -> str | None:
    try:
        return render_jinja(jinja, messages, names.specials(), add_generation_prompt=prompt)
    except DataError:
        return None


@dataclass(frozen=True)
class _Layout:
    """A rendering cut at its contents: markup[0] contents[0] markup[1] ... markup[-1]."""

    markup: tuple[str, ...]
    contents: tuple[int, ...]
    """Message index of each content, in the order of appearance."""


@dataclass(frozen=True)
class Separated:
    """A foreign template. Layouts depend on the roles alone, so each sequence of roles is worked out once."""

    jinja: str
    control: tuple[tuple[str, int], ...]

    def pieces(self, messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
        """Raises DataError when the template refuses the conversation or its contents cannot be told from its markup."""
        if not messages:
            raise DataError("a conversation has no message", expected="at least one")
        pieces = list(self._pieces(messages, names, prompt))
        rendered = render_jinja(self.jinja, messages, names.specials(), add_generation_prompt=prompt)
        if "".join(piece.text for piece in pieces) != rendered:
            raise _inseparable("it changes a content by more than trimming white space")
        return iter(pieces)

    def ends(self, names: Names) -> tuple[str, ...]:
        """The control token that ends an answer, if a plain exchange shows one."""
        try:
            pieces = list(self.pieces([Message("user", "U"), Message("assistant", "A")], names, False))
        except LuyenError:
            return ()
        after = next(piece.text for piece in reversed(pieces) if piece.kind == "markup" and piece.trained and piece.text)
        return tuple(text for text, number in split_control(after, dict(self.control)) if number is not None)

    def _pieces(self, messages: Sequence[Message], names: Names, prompt: bool) -> Iterator[Piece]:
        roles = tuple(message.role for message in messages)
        layout = _layout(self.jinja, roles, names, prompt, False)
        trims = _trims(self.jinja, roles, names, prompt)
        for place, text in enumerate(layout.markup):
            before = layout.contents[place - 1] if place else NOBODY
            after = layout.contents[place] if place < len(layout.contents) else NOBODY
            yield from self._markup(text, before, after, roles, names)
            if place < len(layout.contents):
                left, right = trims[place]
                content = messages[after].content
                content = content.lstrip() if left else content
                yield Piece(content.rstrip() if right else content, "content", after, roles[after] == "assistant")

    def _markup(self, text: str, before: int, after: int, roles: tuple[Role, ...], names: Names) -> Iterator[Piece]:
        """The markup between two contents: the end of the one, headers, and what the model itself writes before the other."""
        if before != NOBODY:
            trained = roles[before] == "assistant"
            end = self._end_of_turn(text)
            if trained and not end:
                raise _inseparable("no control token ends an answer")
            yield Piece(text[:end], "markup", before, trained)
            text = text[end:]
        start = len(text)
        if after != NOBODY and roles[after] == "assistant":
            start = self._start_of_answer(text, after, roles, names)
        yield Piece(text[:start], "markup", after)
        yield Piece(text[start:], "markup", after, trained=True)

    def _end_of_turn(self, text: str) -> int:
        """Where the first control token after a content ends, 0 without one."""
        position = 0
        for part, number in split_control(text, dict(self.control)):
            position += len(part)
            if number is not None:
                return position
        return 0

    def _start_of_answer(self, text: str, after: int, roles: tuple[Role, ...], names: Names) -> int:
        """How much of the markup before an answer is prompt: what `add_generation_prompt` would have put there.

        A template whose prompt is not how it renders the finished answer trains on the content alone.
        """
        try:
            prompt = _layout(self.jinja, roles[:after], names, True, False).markup[-1]
        except DataError:
            return len(text)
        if after:
            prompt = prompt[self._end_of_turn(prompt) :]
        return len(prompt) if text.startswith(prompt) else len(text)


def _inseparable(why: str) -> DataError:
    return DataError(f"the chat template cannot be split into markup and contents: {why}", fix="Choose a template of the table instead.")


@functools.lru_cache(maxsize=4096)
def _layout(jinja: str, roles: tuple[Role, ...], names: Names, prompt: bool, padded: bool) -> _Layout:
    left, right = (_PAD_LEFT, _PAD_RIGHT) if padded else ("", "")
    marked = [Message(role, f"{left}LuyenContent{index}EndOfContent{right}") for index, role in enumerate(roles)]
    parts = _MARK.split(render_jinja(jinja, marked, names.specials(), add_generation_prompt=prompt))
    layout = _Layout(tuple(parts[0::2]), tuple(int(number) for number in parts[1::2]))
    if sorted(layout.contents) != list(range(len(roles))):
        shown = ", ".join(f"{role} {layout.contents.count(index)} times" for index, role in enumerate(roles))
        raise _inseparable(f"it shows the contents of {shown}")
    return layout


@functools.lru_cache(maxsize=4096)
def _trims(jinja: str, roles: tuple[Role, ...], names: Names, prompt: bool) -> tuple[tuple[bool, bool], ...]:
    """For each content in order of appearance, whether white space before and after it is dropped."""
    bare, padded = (_layout(jinja, roles, names, prompt, pad) for pad in (False, True))
    if bare.contents != padded.contents:
        raise _inseparable("white space around a content changes the order")
    lefts, rights = [False] * len(roles), [False] * len(roles)
    for place, (plain, spaced) in enumerate(zip(bare.markup, padded.markup, strict=True)):
        found = None
        for kept_right in (_PAD_RIGHT, "") if place else ("",):
            for kept_left in (_PAD_LEFT, "") if place < len(roles) else ("",):
                if spaced == kept_right + plain + kept_left:
                    found = (kept_right, kept_left)
        if found is None:
            raise _inseparable("white space around a content changes the markup")
        if place:
            rights[place - 1] = not found[0]
        if place < len(roles):
            lefts[place] = not found[1]
    return cast("tuple[tuple[bool, bool], ...]", tuple(zip(lefts, rights, strict=True)))
