"""What a run folder holds, read leniently: the one place that knows which files and keys the stages write.

A folder may be unfinished, old or damaged. What cannot be read is left out and named in `Run.problems`, which the page shows.
Values of the wrong type count as absent, so that no section has to guard itself.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luyen.core.config import parse_yaml
from luyen.core.errors import DamagedFile, DataError, UserError
from luyen.core.files import read_jsonl
from luyen.core.manifest import MANIFEST
from luyen.core.storage import read_json

RECIPE, ENVIRONMENT, EVENTS = "recipe.resolved.yaml", "environment.json", "events.jsonl"

KIND_OF_VERB = {
    "crawl": "pages", "curate": "corpus", "tokenizer": "tokenizer", "pretrain": "model", "sft": "model",
    "synth": "questions", "evaluate": "evaluation", "reward": "reward",
    "dpo": "model", "ppo": "model", "grpo": "model", "reject": "model",
}  # fmt: skip
"""What a stage that has no manifest yet will be, by its verb."""

ALIGNED = {
    "dpo": "learning from preferences", "ppo": "learning from a reward, with a critic", "grpo": "learning from a reward, answers compared",
    "reject": "learning the best of its own answers",
}  # fmt: skip
"""Verbs that align a model, and what they do."""
TALKING = frozenset(("sft", *ALIGNED))
"""Verbs whose models answer in turns."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe, or a folder that an earlier recipe left here."""

    name: str
    folder: Path
    planned: Row
    """The stage as the recipe writes it; empty for a left-over folder."""
    manifest: Row
    """`luyen.json`; empty while the stage is not done."""
    state: str
    """done | failed | stopped | waiting"""
    error: str = ""

    @property
    def verb(self) -> str:
        """The verb that makes this stage."""
        return text(self.manifest.get("verb")) or text(self.planned.get("do"))

    @property
    def kind(self) -> str:
        """pages | corpus | tokenizer | model | questions | evaluation, or what the manifest says."""
        return text(self.manifest.get("kind")) or KIND_OF_VERB.get(self.verb, "")

    @property
    def config(self) -> Row:
        """The verb's resolved config, or the recipe's lines while there is no manifest."""
        return mapping(self.manifest.get("config")) or self.planned

    @property
    def metrics(self) -> Row:
        """The figures that the stage returned."""
        return mapping(self.manifest.get("metrics"))

    def number(self, *names: str) -> float | None:
        """The first of these metrics that is a number; dots go into sections."""
        return pick(self.metrics, *names)


@dataclass(frozen=True)
class Run:
    """A run folder as far as it can be read."""

    folder: Path
    recipe: Row
    recipe_text: str
    environment: Row
    events: list[Row]
    stages: list[Stage]
    problems: list[str] = field(default_factory=list)
    """One sentence per file that could not be read."""

    @property
    def name(self) -> str:
        """The recipe's name, else the folder's."""
        return text(self.recipe.get("name")) or self.folder.resolve().name

    def of_kind(self, kind: str) -> list[Stage]:
        """Stages of a kind, in the recipe's order."""
        return [stage for stage in self.stages if stage.kind == kind]

    def finished(self, kind: str) -> list[Stage]:
        """Stages of a kind that are done."""
        return [stage for stage in self.of_kind(kind) if stage.state == "done"]

    def value(self, path: Path) -> Any:
        """A JSON file's value; None when it is absent or damaged."""
        if not path.is_file():
            return None
        try:
            return read_json(path)
        except (DamagedFile, OSError, RecursionError) as error:
            self.problems.append(_sentence(self.folder, path, error))
            return None

    def rows(self, path: Path) -> Iterator[Row]:
        """Rows of a JSON-lines file, up to the first line that cannot be read (a running stage may be writing the last one)."""
        if not path.is_file():
            return
        try:
            for row in read_jsonl(path):
                if isinstance(row, dict):
                    yield row
        except (DamagedFile, OSError, ValueError, RecursionError) as error:
            self.problems.append(_sentence(self.folder, path, error))


def open_run(folder: Path) -> Run:
    """Read a run folder. Raises DataError when the folder is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no run folder {folder}", fix="Give the folder that `luyen run` made.")
    known = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not (folder / RECIPE).is_file() and not any((path / MANIFEST).is_file() for path in known.values()):
        raise DataError(f"{folder} is not a run folder", expected=f"{RECIPE}, or stages with {MANIFEST}")
    problems: list[str] = []
    recipe_text, recipe = _recipe(folder, problems)
    run = Run(folder, recipe, recipe_text, {}, [], [], problems)
    run.environment.update(mapping(run.value(folder / ENVIRONMENT)))
    run.events.extend(run.rows(folder / EVENTS))
    planned = mapping(recipe.get("stages"))
    names = [str(name) for name in planned]
    left_over = [name for name, path in known.items() if name not in names and (path / MANIFEST).is_file()]
    for name in names + left_over:
        run.stages.append(_stage(run, name, known.get(name), mapping(planned.get(name))))
    return run


def _recipe(folder: Path, problems: list[str]) -> tuple[str, Row]:
    path = folder / RECIPE
    if not path.is_file():
        return "", {}
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(_sentence(folder, path, error))
        return "", {}
    try:
        return content, mapping(parse_yaml(content, RECIPE))
    except (UserError, RecursionError, ValueError) as error:
        problems.append(_sentence(folder, path, error))
        return content, {}


def _stage(run: Run, name: str, folder: Path | None, planned: Row) -> Stage:
    manifest = mapping(run.value(folder / MANIFEST)) if folder else {}
    mine = [event for event in run.events if event.get("stage") == name]
    last = text(mine[-1].get("event")) if mine else ""
    error = ""
    if manifest:
        state = "done"
    elif last == "failed":
        state = "failed"
        error = next((text(mine[-1].get(key)) for key in ("error", "message", "reason") if text(mine[-1].get(key))), "")
    elif mine or (folder and any(folder.iterdir())):
        state = "stopped"
    else:
        state = "waiting"
    return Stage(name, folder or run.folder / ".absent", planned, manifest, state, error)


def _sentence(folder: Path, path: Path, error: Exception) -> str:
    reason = error.reason if isinstance(error, DamagedFile) else str(error) or type(error).__name__
    return f"{path.relative_to(folder).as_posix()}: {' '.join(reason.split())}"


def text(value: object) -> str:
    """A string, or "" for anything else."""
    return value if isinstance(value, str) else ""


def mapping(value: object) -> Row:
    """A dict, or {} for anything else."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[Row]:
    """The dicts of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def pick(values: Mapping[str, Any], *names: str) -> float | None:
    """The first of these keys that holds a number; dots go into sections."""
    for name in names:
        *parents, last = name.split(".")
        inside: Mapping[str, Any] = values
        for parent in parents:
            inside = mapping(inside.get(parent))
        found = number(inside.get(last))
        if found is not None:
            return found
    return None


def series(rows: Iterator[Row], x: str, *names: str) -> dict[str, tuple[list[float], list[float]]]:
    """Columns of a row stream: for each name the pairs (x, value) of the rows that have both as numbers."""
    columns: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for row in rows:
        at = number(row.get(x))
        for name in names if at is not None else ():
            value = number(row.get(name))
            if value is not None and at is not None:
                columns[name][0].append(at)
                columns[name][1].append(value)
    return columns


def funnel(run: Run, stage: Stage) -> Row:
    """`funnel.json` of a corpus stage: steps, train, heldout, masked, languages; a bare list of steps is taken as such."""
    value = run.value(stage.folder / "funnel.json")
    return {"steps": value} if isinstance(value, list) else mapping(value) or stage.metrics


def documents(run: Run, stage: Stage) -> tuple[float | None, float | None]:
    """How many documents a corpus stage was given, and how many it kept."""
    steps = mappings(funnel(run, stage).get("steps"))
    if steps:
        return pick(steps[0], "documents_in"), pick(steps[-1], "documents_out")
    return stage.number("documents_in"), stage.number("documents_out", "documents")


def parameters(folder: Path) -> int | None:
    """Number of weights in `model.safetensors`, from its header (8 bytes length, then JSON with the shapes)."""
    path = folder / "model.safetensors"
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        return sum(int(math.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None
