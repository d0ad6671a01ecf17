"""A rollout: the answers that a policy drew to prompts, their scores, and what was measured of their tokens once; and its folder.

A folder of a rollout, sealed: `answers.jsonl` (a row an answer: `prompt`, `answer`, `score`, `stopped`, `ids`), `columns.safetensors` (a
number a token, by name) and in luyen.json its `figures`. Training goes over a rollout in several steps while the weights that drew it are
gone after the first, so a run that stopped between two of them reads it back.

Shapes: G prompts, S answers, K tokens of all answers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luyen.core import manifest, storage
from luyen.core.errors import DamagedFile
from luyen.core.files import read_jsonl, write_jsonl
from luyen.core.records import Message
from luyen.data.branches import BranchedBatch, Group, collate_groups
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.tasks.question_answering import Example

KIND = "rollout"
ANSWERS, COLUMNS = "answers.jsonl", "columns.safetensors"


@dataclass(frozen=True)
class Prompt:
    """A conversation up to its question, as words and as ids."""

    id: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    example: Example | None = None
    """The task's, with the right answer, where there is one."""


@dataclass(frozen=True)
class Drawn:
    """An answer."""

    ids: tuple[int, ...]
    """With the one that ended it, which is learned like the others."""
    text: str
    stopped: bool
    score: float = math.nan
    """As the reward gave it."""


@dataclass(frozen=True)
class PolicyBatch(BranchedBatch):
    """Some prompts of a rollout with all their answers."""

    by_tokens: bool = True
    """Whether the loss counts tokens, or answers."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of the whole rollout."""

    def share(self, part: int, parts: int) -> PolicyBatch:
        """As any batch of groups, the items that the loss counts counted anew."""
        piece = super().share(part, parts)
        assert isinstance(piece, PolicyBatch)
        return replace(piece, num_targets=len(piece.positions_K) if self.by_tokens else piece.num_sequences)


@dataclass(frozen=True)
class Rollout:
    """Prompts, as many answers to each of them one after another, and numbers of every token."""

    iteration: int
    prompts: tuple[Prompt, ...]
    answers: tuple[Drawn, ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """(K,) each, on the host; the names end in _K."""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return len(self.answers) // len(self.prompts)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer.ids) for answer in self.answers]

    @cached_property
    def scores_S(self) -> Tensor:
        """In float64."""
        return torch.tensor([answer.score for answer in self.answers], dtype=torch.float64)

    def tokens_of(self, groups: Sequence[int]) -> Tensor:
        """Places among the K tokens of all answers to these prompts, in their order."""
        ends = np.cumsum(self.lengths)
        each = [np.arange(ends[row] - self.lengths[row], ends[row]) for group in groups for row in self._rows(group)]
        return torch.from_numpy(np.concatenate(each))

    def batch(self, groups: Sequence[int], share: bool = True, by_tokens: bool = True) -> PolicyBatch:
        """The answers to these prompts; `share=False` writes every sequence out whole, for models that must see them so."""
        made = [Group(self.prompts[group].id, tuple(self._sequence(group, row) for row in self._rows(group))) for group in groups]
        places_K = self.tokens_of(groups)
        plain = collate_groups(made, share, {name: column[places_K] for name, column in self.columns.items()})
        values = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        values["num_targets"] = len(plain.positions_K) if by_tokens else plain.num_sequences
        return PolicyBatch(**values, by_tokens=by_tokens, figures=self.figures)

    def _rows(self, group: int) -> range:
        return range(group * self.samples, (group + 1) * self.samples)

    def _sequence(self, group: int, row: int) -> Sample:
        prompt, answer = self.prompts[group].ids, self.answers[row].ids
        tokens = np.array([*prompt, *answer[:-1]], dtype=np.int32)
        return Sample(f"{self.prompts[group].id}#{row}", tokens, np.array([NOT_TRAINED] * (len(prompt) - 1) + list(answer), dtype=np.int32))


def folder_of(root: Path, iteration: int) -> Path:
    """Where the rollout of an iteration lies."""
    return root / f"iteration-{iteration:06d}"


def write(rollout: Rollout, root: Path) -> None:
    """Put a rollout into its folder, whole or not at all. Raises StorageError."""
    final = folder_of(root, rollout.iteration)
    with storage.storage_errors(final):
        root.mkdir(parents=True, exist_ok=True)
    with manifest.new_folder(final) as folder:
        write_jsonl(folder / ANSWERS, rows_of(rollout))
        with storage.usual_mode(folder / COLUMNS):
            save_file({name: column.contiguous() for name, column in rollout.columns.items()}, folder / COLUMNS)
        manifest.seal(folder, KIND, iteration=rollout.iteration, figures=dict(rollout.figures))


def rows_of(rollout: Rollout) -> list[dict[str, Any]]:
    """A row an answer."""
    prompts = [prompt.id for prompt in rollout.prompts for _ in range(rollout.samples)]
    return [
        {"prompt": prompt, "answer": answer.text, "score": answer.score, "stopped": answer.stopped, "ids": list(answer.ids)}
        for prompt, answer in zip(prompts, rollout.answers, strict=True)
    ]


def read(root: Path, iteration: int) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, float]]:
    """Rows, columns and figures of a rollout after checking every file. Raises DamagedFile."""
    folder = folder_of(root, iteration)
    try:
        found = manifest.verify(folder)
        return list(read_jsonl(folder / ANSWERS)), load_file(folder / COLUMNS), dict(found["figures"])
    except DamagedFile as error:
        told = "its updates were under way, and the weights that wrote its answers are gone. Start anew in another folder"
        raise DamagedFile(folder, f"is needed to go on: {error.reason}; {told}") from error


def drawn(rows: Sequence[Mapping[str, Any]]) -> tuple[Drawn, ...]:
    """The answers of rows."""
    return tuple(Drawn(tuple(row["ids"]), row["answer"], row["stopped"], row["score"]) for row in rows)


def discard_after(root: Path, iteration: int) -> None:
    """Delete rollouts of later iterations, whose weights a run that goes on from a checkpoint does not have yet."""
    if root.is_dir():
        manifest.clean_up(root)
        for number, folder in _found(root):
            if number > iteration:
                manifest.discard(folder)


def discard_unneeded(root: Path, checkpoints: Path, now: int) -> None:
    """Delete rollouts of iterations before `now` that no checkpoint would go on with; all stay as long as there is no checkpoint."""
    needed = []
    for path in checkpoints.glob("step-*/state.json"):
        with contextlib.suppress(DamagedFile):  # one that is being deleted beside the loop
            state = storage.read_json(path)["done"]["stream"]
            needed.append(now if state is None else int(state["iteration"]))
    for number, folder in _found(root) if needed else ():
        if number < min(needed):
            manifest.discard(folder)


def _found(root: Path) -> list[tuple[int, Path]]:
    return [(int(path.name.partition("-")[2]), path) for path in sorted(root.glob("iteration-*")) if path.is_dir()]
