"""One verb alone on small data, as the command line runs it."""

from __future__ import annotations

import json
from pathlib import Path

from luyen.core.config import dump, load, parse_overrides
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.run import run
from luyen.recipe.table import load_config_class

LOOP = ("train.steps=1", "train.device=cpu", "batch.rows=1")


def verb(name: str, folder: Path, *settings: str) -> Path:
    """One verb alone, as the command line runs it; the folder of its result."""
    config = load(load_config_class(name), parse_overrides(settings))
    source = {"version": 1, "name": name, "stages": {name: {"do": name, **dump(config)}}}
    run(Plan(name, "", 0, "", (StagePlan(name, name, config, ()),), source), folder)
    return folder / name


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    return path
