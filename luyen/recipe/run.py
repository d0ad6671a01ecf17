"""Running a recipe: skip what is up to date, continue what was interrupted, record what was made of what.

A stage is up to date when its folder has a manifest with the fingerprint that the plan gives it now: verb, config,
seed, code version, and the content of its inputs. While a stage works, `stage.json` in its folder holds that
fingerprint; a later attempt with the same one continues there, with another one starts anew.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from luyen.core import interrupt, manifest, progress
from luyen.core.config import dump, input_fields
from luyen.core.errors import DamagedFile, Interrupted, StorageError, UserError
from luyen.core.seed import derive
from luyen.recipe.environment import code_version, environment, versions
from luyen.recipe.graph import Plan, StagePlan, input_values
from luyen.recipe.stage import Stage
from luyen.recipe.table import VERBS, load_verb

IN_PROGRESS = "stage.json"
UNSEALED = (IN_PROGRESS, "timings.jsonl", "checkpoints", "work")
"""Not part of a stage's result: they hold times or only serve to continue."""


def run(plan: Plan, folder: Path) -> None:
    """Bring every stage of `plan` up to date in `folder`. Raises the first stage's error; what is done stays done."""
    folder = Path(folder)
    with manifest.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        manifest.write_atomic(folder / "recipe.resolved.yaml", yaml.safe_dump(dict(plan.source), sort_keys=False, allow_unicode=True))
        manifest.write_json(folder / "environment.json", environment())
        done: dict[str, Path] = {}
        fingerprints: dict[str, str] = {}
        for item in plan.stages:
            interrupt.check()
            fingerprints[item.name] = _run_stage(item, plan, folder, done, fingerprints)
            done[item.name] = folder / item.name


def _run_stage(item: StagePlan, plan: Plan, run_folder: Path, done: Mapping[str, Path], fingerprints: Mapping[str, str]) -> str:
    """Do one stage unless it is up to date; returns the fingerprint of its content."""
    seed = derive(plan.seed, item.name)
    inputs = {value: fingerprints.get(value) or _external_fingerprint(value) for value in input_values(item.config)}
    wanted = manifest.fingerprint([item.verb, _neutral_config(item, inputs), seed, code_version()])
    folder = run_folder / item.name
    finished = _finished(folder, wanted)
    if finished is not None:
        progress.say(f"{item.name}: up to date")
        _event(run_folder, "skipped", item.name)
        return manifest.content_fingerprint(finished)
    resumed = _prepare(folder, wanted)
    stage = Stage(item.name, folder, seed, dict(done))
    progress.say(f"{item.name}: {'continuing' if resumed else item.verb}")
    _event(run_folder, "resumed" if resumed else "started", item.name)
    started = time.monotonic()
    before = manifest.read_json(folder / IN_PROGRESS).get("seconds", 0.0)
    try:
        load_verb(item.verb).run(item.config, stage)
    except BaseException as error:
        seconds = before + time.monotonic() - started
        with contextlib.suppress(OSError, StorageError):
            manifest.write_json(folder / IN_PROGRESS, {"fingerprint": wanted, "seconds": seconds})
            name = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
            _event(run_folder, name, item.name, error=str(error)[:500])
        raise
    seconds = before + time.monotonic() - started
    facts = {
        "verb": item.verb, "stage": item.name, "fingerprint": wanted, "config": dump(item.config), "inputs": inputs, "seed": seed,
        "metrics": stage.metrics, "seconds": round(seconds, 2), "versions": versions(), **stage.facts,
    }  # fmt: skip
    sealed = seal_stage(folder, VERBS[item.verb].kind, facts)
    _event(run_folder, "finished", item.name, seconds=round(seconds, 2))
    progress.say(f"{item.name}: done in {seconds:.0f} s{_summary(stage.metrics)}")
    return manifest.content_fingerprint(sealed)


def seal_stage(folder: Path, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a stage's manifest over its results and remove the mark of work in progress."""
    with manifest.storage_errors(folder):
        sealed = manifest.seal(folder, kind, skip=UNSEALED, **facts)
        (folder / IN_PROGRESS).unlink(missing_ok=True)
    return sealed


def _summary(metrics: Mapping[str, Any]) -> str:
    line = metrics.get("summary")
    return f": {line}" if line else ""


def _neutral_config(item: StagePlan, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The config with every input replaced by the fingerprint of its content, so that paths and names do not matter."""
    config = dump(item.config)
    for name in input_fields(type(item.config)):
        config[name] = _replace(config[name], inputs)
    return config


def _replace(value: Any, inputs: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return inputs.get(value, value)
    if isinstance(value, list):
        return [_replace(item, inputs) for item in value]
    if isinstance(value, dict):
        return {key: _replace(item, inputs) for key, item in value.items()}
    return value


def _finished(folder: Path, wanted: str) -> dict[str, Any] | None:
    """The manifest of a finished, undamaged stage with this fingerprint, else None. Damage is said aloud."""
    if not (folder / manifest.MANIFEST).is_file():
        return None
    try:
        found = manifest.verify(folder)
    except DamagedFile as error:
        progress.say(f"{folder.name}: {error}; doing this stage again")
        return None
    return found if found.get("fingerprint") == wanted else None


def _prepare(folder: Path, wanted: str) -> bool:
    """Make `folder` ready for work; True when an interrupted attempt at the same thing is there to continue."""
    mark = folder / IN_PROGRESS
    if mark.is_file() and not (folder / manifest.MANIFEST).is_file():
        with contextlib.suppress(DamagedFile):
            if manifest.read_json(mark).get("fingerprint") == wanted:
                return True
    with manifest.storage_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        manifest.write_json(mark, {"fingerprint": wanted, "seconds": 0.0})
    return False


def _external_fingerprint(value: str) -> str:
    """Fingerprint of an input that is no stage: the content of a file or folder, or a hub name itself."""
    path = Path(value).expanduser()
    if path.is_file():
        return manifest.sha256_file(path)
    if (path / manifest.MANIFEST).is_file():
        return manifest.content_fingerprint(manifest.verify(path))
    if path.is_dir():
        return manifest.fingerprint(
            {item.relative_to(path).as_posix(): manifest.sha256_file(item) for item in sorted(path.rglob("*")) if item.is_file()}
        )
    return value


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process per run folder; the lock dies with its process, so a crash leaves nothing behind."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another luyen works in {folder}", fix="Wait for it, or choose another folder with --out.") from error
        yield


def _event(folder: Path, event: str, stage: str, **facts: object) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = {"time": now, "event": event, "stage": stage, **facts}
    with manifest.storage_errors(folder), open(folder / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + os.linesep)
