"""What a verb gets to work with: its folder, its seed, and a place to put what is worth telling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luyen.core.errors import ModelError, UserError
from luyen.core.folders import ADAPTER_FILE, MODEL_FILE, model_in
from luyen.core.hub import has_hub_form
from luyen.core.manifest import existing
from luyen.data.discover import locate
from luyen.tokenizer import folder as tokenizers

PREFERENCES = "preferences.jsonl"
"""What a stage that makes preferences calls them."""


@dataclass
class Stage:
    """One stage at work. `folder` may hold what an earlier, interrupted attempt at the same stage left there."""

    name: str
    folder: Path
    seed: int
    sources: dict[str, Path] = field(default_factory=dict)
    """Stage name -> folder of its result."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures for the manifest and the report."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Other top-level facts of the manifest: tokens, joules; peak_bytes where it is a GPU's, in place of the process'."""
    kind: str = ""
    """What was made, where it is not what the verb always makes."""
    measured: Callable[[int, Mapping[str, float]], None] | None = None
    """Told every evaluation of a training stage, see Hooks."""
    instead: Callable[[Any, Any], None] | None = None
    """Takes the algorithm and the training config of a training stage in place of the loop; ends the stage by raising."""

    def path(self, value: str) -> Path:
        """The folder of the stage named `value`, else `value` as a path that must exist."""
        if value in self.sources:
            return self.sources[value]
        path = existing(value)
        if path is None:
            raise UserError(f"{self.name}: no such file or folder {value!r}", fix="Check the path.")
        return path

    def model(self, value: str) -> str:
        """The folder of a model or adapter from a stage's name, a path (`model` or `adapter` in it is found), or a hub name unchanged."""
        if value not in self.sources and existing(value) is None:
            if has_hub_form(value):
                return value
            raise ModelError(f"no model {value!r}", expected="a stage, a folder with config.json, or a hub name owner/model")
        path = self.path(value)
        if folder := model_in(path):
            return str(folder)
        found = f"no {MODEL_FILE} and no {ADAPTER_FILE}"
        raise ModelError(f"{path} is not a model", found=found, expected="a Hugging Face folder or a finished stage")

    def tokenizer(self, value: str) -> Path:
        """The folder with tokenizer.json of a stage, of a path, or of the copy on this machine of a model of the hub."""
        return tokenizers.locate(self.sources.get(value, value))

    def files(self, value: str) -> Path:
        """A stage's folder, a path that exists, or the copy on this machine of a data set of the hub."""
        return self.path(value) if value in self.sources else locate(value)

    def data(self, value: str) -> Path:
        """A data file or folder, or a data set of the hub: for a stage of questions its training rows, of preferences its pairs."""
        path = self.files(value)
        if (path / PREFERENCES).is_file():
            return path / PREFERENCES
        return path / "train.jsonl" if (path / "train.jsonl").is_file() and (path / "evaluation.jsonl").is_file() else path
