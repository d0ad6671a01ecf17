"""Preferences and judged answers as groups of sequences, with an account of every row and token, and an endless stream of them.

A preference is a group of two sequences, the chosen one first; a judged answer is a group of one. Trained are tokens of the answers' turns
alone: the last turn of each, or with turns="all" every assistant's turn of the branch (multi-turn DPO); never those of the prompt.

What cannot be learned from is left out, counted, and named by file and line: an empty answer, two answers that are the same tokens (also
after the cut), prompts that the template writes differently for the two, a negative margin. A row that is too long is left out, cut at its
end (keep_start), or cut at the prompt's beginning, for both answers alike so that they still share it (keep_end).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luyen.core.errors import DataError
from luyen.core.records import Feedback, Message, Preference, Record
from luyen.data.branches import BranchedBatch, Group, collate_groups
from luyen.data.samples import ANSWER_CUT_AWAY, BATCH_ROWS, NOT_TRAINED, TOO_LONG, Account, Sample
from luyen.data.shuffle import permutation
from luyen.tokenizer.chat import Rendered, render_batch
from luyen.tokenizer.load import Tokenizer

Cut = Literal["drop", "keep_start", "keep_end", "raise"]
Turns = Literal["last", "all"]

EMPTY_ANSWER = "an empty answer"
SAME = "chosen and rejected are the same tokens"
SAME_AFTER_CUT = "chosen and rejected are the same tokens after the cut"
OTHER_PROMPT = "chosen and rejected have different prompts"
NEGATIVE = "a negative margin"
NOT_AN_ANSWER = "no answer of the assistant at the end"
NAMED = 8
"""Rows at fault that are named."""


@dataclass(frozen=True)
class PairRules:
    """How rows become sequences."""

    length: int
    """Most positions of a sequence."""
    truncation: Cut = "drop"
    turns: Turns = "last"
    strict: bool = False
    """Raise DataError at the first row at fault instead of leaving it out."""


@dataclass
class Groups:
    """What became of rows. The account counts the tokens of both sequences of a pair, the prompt twice."""

    groups: list[Group] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    """The row of each group."""
    account: Account = field(default_factory=Account)
    faults: list[str] = field(default_factory=list)
    """The first rows at fault, "file:line: reason". Rows that are merely too long are counted in the account alone."""

    def add(self, other: Groups) -> None:
        """Take up those of another source."""
        self.groups += other.groups
        self.records += other.records
        self.account += other.account
        self.faults = [*self.faults, *other.faults][:NAMED]


def preference_groups(
    records: Sequence[Record], tokenizer: Tokenizer, rules: PairRules, origins: Sequence[str] = (), name: str = "pair"
) -> Groups:  # fmt: skip
    """Preferences as pairs. `origins` are the rows' files and lines. A group's id is `name` and the row's number from 0.

    Raises DataError for rows of another kind, and where the rules say so.
    """
    made = Groups()
    numbered = enumerate(records)
    while batch := list(islice(numbered, BATCH_ROWS)):
        rows = [record for _, record in batch if isinstance(record, Preference)]
        if len(rows) < len(batch):
            found = next(type(record).__name__.lower() for _, record in batch if not isinstance(record, Preference))
            raise DataError("these rows are no preferences", found=found, expected="a prompt with a chosen and a rejected answer",
                            fix="Judged single answers (prompt, completion, label) are for loss.name=kto.")  # fmt: skip
        sides = [[*row.prompt, *answer] for row in rows for answer in (row.chosen, row.rejected)]
        rendered = iter(render_batch(tokenizer, sides))
        for (number, _), row in zip(batch, rows, strict=True):
            both = (next(rendered), next(rendered))
            key = f"{name}:{number}"
            _take(made, row, _pair(row, both, rules), rules, (key, origins[number] if origins else key))
    return made


def feedback_groups(
    records: Sequence[Record], tokenizer: Tokenizer, rules: PairRules, origins: Sequence[str] = (), name: str = "row"
) -> Groups:  # fmt: skip
    """Judged answers as groups of one sequence; a preference counts as a good answer and a bad one. Raises as `preference_groups` does."""
    made = Groups()
    rows = list(judged(records))
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        rendered = render_batch(tokenizer, [[*row.prompt, *row.completion] for _, row in batch])
        for place, ((number, row), item) in enumerate(zip(batch, rendered, strict=True), start):
            side = _side(item, row.prompt, row.completion, rules.turns)
            origin = origins[number] if origins else f"{name}:{number}"
            _take(made, row, ([side], _faulty_answer(row.completion)), rules, (f"{name}:{place}", origin))
    return made


def judged(records: Iterable[Record]) -> Iterator[tuple[int, Feedback]]:
    """The answers that were judged, each with the number of its row. DataError for rows of another kind."""
    for number, record in enumerate(records):
        if isinstance(record, Feedback):
            yield number, record
        elif isinstance(record, Preference):
            yield number, Feedback(record.prompt, record.chosen, True)
            yield number, Feedback(record.prompt, record.rejected, False)
        else:
            raise DataError("these rows are no judged answers", found=type(record).__name__.lower(),
                            expected="a prompt, a completion and a label, or a preference")  # fmt: skip


def mismatched(made: Groups, tokenizer: Tokenizer, rules: PairRules, seed: int) -> list[Group]:
    """Groups of judged answers, each with the answer to another prompt as a second sequence: what KTO's baseline is estimated from.

    Every answer stands once at a prompt that is not its own: at that of the row before it in a random order, which is the same for all
    epochs, so that a reference can be computed once. (The paper pairs within a micro-batch; the order is as random.) A second sequence is
    cut at its end where it does not fit.
    """
    rows = [record for record in made.records if isinstance(record, Feedback)]
    order = permutation(len(rows), seed, "mismatched")
    partner = np.empty(len(rows), dtype=np.int64)
    partner[order] = np.roll(order, -1)
    found: list[Group] = []
    for start in range(0, len(rows), BATCH_ROWS):
        part = range(start, min(start + BATCH_ROWS, len(rows)))
        turns = [[*rows[own].prompt, *rows[partner[own]].completion] for own in part]
        for own, item in zip(part, render_batch(tokenizer, turns), strict=True):
            group = made.groups[own]
            side = _side(item, rows[own].prompt, rows[partner[own]].completion, rules.turns)
            (second,), _ = _cut([side], PairRules(rules.length, "keep_end" if rules.truncation == "keep_end" else "keep_start"))
            found.append(Group(group.id, (*group.sequences, Sample(f"{group.id}/other", second.tokens, second.targets))))
    return found


@dataclass(frozen=True)
class _Side:
    """One sequence: at position i the token, and what is asked for there."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    prompt: tuple[int, ...] = ()
    """Ids of the prompt's turns."""

    @property
    def trained(self) -> int:
        return int((self.targets != NOT_TRAINED).sum())

    def part(self, start: int, stop: int) -> _Side:
        return _Side(self.tokens[start:stop], self.targets[start:stop])


def _side(rendered: Rendered, prompt: Sequence[Message], answer: Sequence[Message], turns: Turns) -> _Side:
    first = len(prompt) if turns == "all" else len(prompt) + len(answer) - 1
    ids, owner = np.array(rendered.ids, dtype=np.int32), np.array(rendered.message_index)
    trained = np.array(rendered.trained, dtype=bool) & (owner >= first)
    targets = np.where(trained[1:], ids[1:], np.int32(NOT_TRAINED)).astype(np.int32)
    return _Side(ids[:-1], targets, tuple(ids[owner < len(prompt)].tolist()))


def _faulty_answer(answer: Sequence[Message]) -> str:
    if not answer or answer[-1].role != "assistant":
        return NOT_AN_ANSWER
    return EMPTY_ANSWER if any(turn.role == "assistant" and not turn.content.strip() for turn in answer) else ""


def _pair(row: Preference, rendered: tuple[Rendered, Rendered], rules: PairRules) -> tuple[list[_Side], str]:
    """Both sequences, and what is wrong with the row; "" for nothing."""
    answers = (row.chosen, row.rejected)
    sides = [_side(item, row.prompt, answer, rules.turns) for item, answer in zip(rendered, answers, strict=True)]
    fault = next((found for answer in answers if (found := _faulty_answer(answer))), "")
    if not fault and row.margin is not None and row.margin < 0:
        fault = f"{NEGATIVE} ({row.margin:g})"
    common = min(len(side.prompt) for side in sides) - 1  # the prompt's last piece may be one token with the answer's first
    if not fault and sides[0].prompt[:common] != sides[1].prompt[:common]:
        fault = OTHER_PROMPT
    return sides, fault or (SAME if _alike(sides) else "")


def _alike(sides: Sequence[_Side]) -> bool:
    first, second = sides
    return np.array_equal(first.tokens, second.tokens) and np.array_equal(first.targets, second.targets)


def _cut(sides: Sequence[_Side], rules: PairRules) -> tuple[list[_Side], str]:
    """The sequences within the length, and why the row cannot be used; "" where it can."""
    longest = max(len(side.tokens) for side in sides)
    kept = list(sides)
    if longest > rules.length:
        if rules.truncation == "drop":
            return kept, TOO_LONG
        if rules.truncation == "keep_end":
            start = longest - rules.length
            if start > Group("", tuple(Sample("", side.tokens, side.targets) for side in sides)).shared and len(sides) > 1:
                return kept, TOO_LONG  # its answers alone
            kept = [side.part(start, len(side.tokens)) for side in sides]
        else:
            kept = [side.part(0, rules.length) for side in sides]
    if any(not side.trained for side in kept):
        return kept, ANSWER_CUT_AWAY
    return kept, SAME_AFTER_CUT if len(kept) > 1 and _alike(kept) else ""


def _take(made: Groups, row: Record, found: tuple[list[_Side], str], rules: PairRules, names: tuple[str, str]) -> None:
    """Count a row, known by its group's id and by its file and line, and add its group where it can be used."""
    (sides, fault), (key, origin) = found, names
    rendered, answer = sum(len(side.tokens) for side in sides), sum(side.trained for side in sides)
    longest = max(len(side.tokens) for side in sides)
    whole = Account(rows=1, rendered=rendered, answer=answer, longest=longest)
    if longest > rules.length and rules.truncation == "raise" and not fault:
        raise DataError(f"{origin} is too long", found=f"{longest} tokens", expected=f"at most {rules.length}",
                        fix="Raise the length, or set truncation to drop, keep_start or keep_end.")  # fmt: skip
    kept, reason = (sides, fault) if fault else _cut(sides, rules)
    if reason:
        made.account += whole + Account(dropped={reason.partition(" (")[0]: 1}, cut=rendered, lost=answer)
        if reason not in (TOO_LONG, ANSWER_CUT_AWAY):
            if rules.strict:
                raise DataError(f"{origin}: {reason}", fix="Mend the row or take it out, or set read.strict=false to leave it out.")
            made.faults += [f"{origin}: {reason}"] if len(made.faults) < NAMED else []
        return
    tokens, trained = sum(len(side.tokens) for side in kept), sum(side.trained for side in kept)
    cut = rendered - tokens
    made.account += whole + Account(
        samples=1, truncated=int(cut > 0), tokens=tokens, cut=cut, trained=trained, lost=answer - trained
    )  # fmt: skip
    ids = (key,) if len(kept) == 1 else (f"{key}/chosen", f"{key}/rejected")
    made.groups.append(Group(key, tuple(Sample(own, side.tokens, side.targets) for own, side in zip(ids, kept, strict=True))))
    made.records.append(row)


class GroupStream:
    """Endless batches of `size` groups each.

    An epoch is a random order of all groups, or what `order(epoch)` says (a Mixture's). The epochs form one endless sequence, and a batch
    is the next `size` of it, so 8 batches of 1 group hold the same as 1 batch of 8.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        size: int,
        seed: int,
        share: bool = True,
        columns: Mapping[str, Tensor] | None = None,
        order: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> None:
        """`share=False` writes every sequence out. A column has a row for each group; one whose name ends in _S a row of as many numbers as
        the groups have sequences. Raises DataError when there are no groups."""
        if not groups:
            raise DataError("there is nothing to train on: no groups", fix="Look at what was dropped and why with luyen inspect.")
        self.groups, self.size, self.seed, self.shared = groups, size, seed, share
        self.columns = dict(columns or {})
        self._order = order or (lambda epoch: permutation(len(groups), seed, "order", epoch))
        self._orders: dict[int, NDArray[np.int64]] = {}
        self.fingerprint = self._digest()

    def add(self, name: str, column: Tensor) -> None:
        """A further column, of figures that follow from the data: they do not count in what a state must fit."""
        if len(column) != len(self.groups):
            raise DataError(f"column {name}", found=f"{len(column)} rows", expected=f"one for each of {len(self.groups)} groups")
        self.columns[name] = column

    def batch(self, indices: Sequence[int]) -> BranchedBatch:
        """The groups of these numbers as a batch."""
        places = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        columns = {name: column[places].flatten() if name.endswith("_S") else column[places] for name, column in self.columns.items()}
        return collate_groups([self.groups[index] for index in indices], self.shared, columns)

    def batches(self, state: Mapping[str, Any] | None = None) -> Iterator[tuple[BranchedBatch, dict[str, Any]]]:
        """(batch, state) for ever; `batches(state)` continues with exactly the batch that followed the one yielded with `state`.

        Raises DataError when `state` was made with other groups or another seed. The size of a batch may differ.
        """
        epoch, place = self._position(state)
        while True:
            indices: list[int] = []
            while len(indices) < self.size:
                order = self._epoch(epoch)
                taken = order[place : place + self.size - len(indices)].tolist()
                indices += taken
                place += len(taken)
                if place >= len(order):
                    epoch, place = epoch + 1, 0
            yield self.batch(indices), {"epoch": epoch, "place": place, "data": self.fingerprint}

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {epoch: self._order(epoch)}
        return self._orders[epoch]

    def _position(self, state: Mapping[str, Any] | None) -> tuple[int, int]:
        if state is None:
            return 0, 0
        if state["data"] != self.fingerprint:
            raise DataError("cannot continue: the pairs, their cut or the seed changed since the checkpoint",
                            fix="Put back the same data and settings, or start anew in another folder.")  # fmt: skip
        return int(state["epoch"]), int(state["place"])

    def _digest(self) -> str:
        """A short hash of everything that decides the stream, so that a state cannot be used with other data."""
        digest = hashlib.blake2b(f"{self.seed}".encode(), digest_size=12)
        digest.update(np.ascontiguousarray(self._epoch(0)).data)
        for group in self.groups:
            for sample in group.sequences:
                digest.update(f"\n{sample.id}\n{len(sample.tokens)}\n".encode("utf-8", "surrogatepass"))
                digest.update(np.ascontiguousarray(sample.tokens).data)
                digest.update(np.ascontiguousarray(sample.targets).data)
        for name, column in sorted(self.columns.items()):
            digest.update(f"\n{name}\n".encode())
            digest.update(column.contiguous().numpy().data)
        return digest.hexdigest()
