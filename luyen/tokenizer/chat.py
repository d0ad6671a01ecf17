"""Conversations to token ids, with what is trained on marked by construction.

The template gives pieces of which it is known who wrote them. Control tokens are taken from markup alone, by number;
the text between two control tokens, which may join markup and content, is encoded in one go by the tokenizer that
knows no control token. So the ids are those that transformers gives for the rendered string (a space before an answer
and the answer's first word become one token), yet no content can give a control token, alone or together with what
stands beside it. A token is trained on when any of its characters is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from luyen.core.records import Message
from luyen.tokenizer.load import Run, Tokenizer
from luyen.tokenizer.markup import split_control
from luyen.tokenizer.templates import Piece


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids. All three lists have the same length."""

    ids: list[int]
    trained: list[bool]
    """Whether the model learns to produce this token: the assistant's content and its end of turn."""
    message_index: list[int]
    """The message that the token belongs to, its header included; -1 for the beginning token and the generation prompt."""


@dataclass
class _Stretch:
    """Either one control token (`control`), or text to encode with its pieces' starts and owners."""

    control: int | None = None
    text: str = ""
    starts: list[int] = field(default_factory=list)
    owners: list[Piece] = field(default_factory=list)

    def add(self, text: str, owner: Piece) -> None:
        if text:
            self.starts.append(len(self.text))
            self.owners.append(owner)
            self.text += text


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Rendered:
    """A conversation as ids by the tokenizer's chat template. With `add_generation_prompt` it ends where an answer begins.

    Raises DataError when the template refuses the conversation, ModelError when the tokenizer has no template.
    """
    return render_batch(tokenizer, [messages], add_generation_prompt=add_generation_prompt)[0]


def render_batch(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool = False
) -> list[Rendered]:
    """`render` of many conversations on all cores; same results, same order."""
    template, names = tokenizer.template, tokenizer.names
    plans = [_stretches(tokenizer, list(template.pieces(messages, names, add_generation_prompt))) for messages in conversations]
    texts = [(stretch.text, place == 0) for plan in plans for place, stretch in enumerate(plan) if stretch.control is None]
    runs = iter(tokenizer.encode_runs([text for text, _ in texts], first=[begins for _, begins in texts]))
    return [_assemble(plan, [next(runs) if stretch.control is None else None for stretch in plan]) for plan in plans]


def _stretches(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for piece in pieces:
        parts = split_control(piece.text, tokenizer.control) if piece.kind == "markup" else [(piece.text, None)]
        for text, control in parts:
            if control is not None:
                stretches.append(_Stretch(control, text, [0], [piece]))
            elif stretches and stretches[-1].control is None:
                stretches[-1].add(text, piece)
            elif text:
                stretches.append(_Stretch())
                stretches[-1].add(text, piece)
    _swallow_space(tokenizer, stretches)
    return [stretch for stretch in stretches if stretch.text]


def _swallow_space(tokenizer: Tokenizer, stretches: list[_Stretch]) -> None:
    """Drop white space that the neighbouring control tokens are declared to take in (`lstrip`, `rstrip`)."""
    for left, right in zip(stretches, stretches[1:], strict=False):
        if left.control is not None and right.control is None and tokenizer.stripping[left.text][1]:
            _cut(right, len(right.text) - len(right.text.lstrip()), len(right.text))
        if left.control is None and right.control is not None and tokenizer.stripping[right.text][0]:
            _cut(left, 0, len(left.text.rstrip()))


def _cut(stretch: _Stretch, start: int, end: int) -> None:
    stretch.text = stretch.text[start:end]
    stretch.starts = [max(0, place - start) for place in stretch.starts]


def _assemble(plan: Sequence[_Stretch], runs: Sequence[Run | None]) -> Rendered:
    rendered = Rendered([], [], [])
    for stretch, run in zip(plan, runs, strict=True):
        if stretch.control is not None:
            rendered.ids.append(stretch.control)
            rendered.trained.append(stretch.owners[0].trained)
            rendered.message_index.append(stretch.owners[0].message)
        elif run is not None:
            _append_run(rendered, stretch, run)
    return rendered


def _append_run(rendered: Rendered, stretch: _Stretch, run: Run) -> None:
    rendered.ids.extend(run.ids)
    if len(stretch.owners) == 1:
        rendered.trained.extend([stretch.owners[0].trained] * len(run.ids))
        rendered.message_index.extend([stretch.owners[0].message] * len(run.ids))
        return
    for start, end in run.spans:
        first = bisect_right(stretch.starts, start) - 1
        last = max(first, bisect_right(stretch.starts, end - 1) - 1)
        rendered.trained.append(any(owner.trained for owner in stretch.owners[first : last + 1]))
        rendered.message_index.append(stretch.owners[last].message)
