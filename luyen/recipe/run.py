"""Running a recipe: skip what is up to date, continue what was interrupted, record what was made of what.

A stage is up to date when its folder has a manifest with the fingerprint that the plan gives it now: verb, config,
seed, code version, and the content of its inputs. A later attempt with the same fingerprint continues an unfinished one;
what happens to results and attempts that no longer fit is in attempts.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from luyen.core import distributed, host_memory, interrupt, manifest, progress, storage
from luyen.core.config import dump
from luyen.core.errors import Interrupted, StorageError, UserError
from luyen.core.seed import derive
from luyen.recipe import attempts
from luyen.recipe.attempts import IN_PROGRESS
from luyen.recipe.environment import code_version, environment, versions
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.inputs import check_inputs, fingerprint_inputs, neutral_config
from luyen.recipe.journal import event
from luyen.recipe.stage import Stage
from luyen.recipe.table import VERBS, load_verb

Measured = Callable[[int, Mapping[str, float]], None]
"""Told the step and what was measured."""


def run(
    plan: Plan, folder: Path, estimates: Mapping[str, Mapping[str, Any]] | None = None, measured: Mapping[str, Measured] | None = None
) -> None:
    """Bring every stage of `plan` up to date in `folder`. Raises the first stage's error; what is done stays done.

    With several processes all call this. The main one does every stage; the others take part in training and write nothing here.
    `estimates` (stage -> what it was expected to take) stand in the stages' manifests beside what was measured.
    `measured` (stage -> function) is told every evaluation of a training stage, and may end it by raising.
    """
    folder = Path(folder)
    if not distributed.is_main():
        _take_part(plan, folder)
        return
    check_inputs(plan, folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", expected="a folder for the run")
    with storage.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        storage.write_atomic(folder / "recipe.resolved.yaml", yaml.safe_dump(dict(plan.source), sort_keys=False, allow_unicode=True))
        storage.write_json(folder / "environment.json", environment())
        manifest.clean_up(folder)
        fingerprints: dict[str, str] = {}
        for item in plan.stages:
            interrupt.check()
            facts = {"estimate": dict(estimates[item.name])} if estimates and item.name in estimates else {}
            stage = Stage(item.name, folder / item.name, stage_seed(item, plan), facts=facts, measured=(measured or {}).get(item.name))
            fingerprints[item.name] = _run_stage(item, stage, fingerprints)


def up_to_date(plan: Plan, folder: Path) -> dict[str, Path]:
    """Folders of the stages that `run` will skip, by their manifests alone; whether their files are whole is seen when it comes to them."""
    return standing(plan, folder)[0]


def standing(plan: Plan, folder: Path) -> tuple[dict[str, Path], dict[str, int]]:
    """What `up_to_date` gives, and of stages that will go on where they stopped the step of the newest checkpoint."""
    fingerprints: dict[str, str] = {}
    done: dict[str, Path] = {}
    steps: dict[str, int] = {}
    for item in plan.stages:
        if any(name not in fingerprints for name in item.inputs):
            continue
        wanted = _wanted(item, stage_seed(item, plan), fingerprint_inputs(item.config, fingerprints))
        path = attempts.holding(folder / item.name, wanted)
        if path is not None:
            done[item.name] = path
            fingerprints[item.name] = manifest.content_fingerprint(manifest.read(path))
        elif step := attempts.step_reached(folder / item.name, wanted):
            steps[item.name] = step
    return done, steps


def stage_seed(item: StagePlan, plan: Plan) -> int:
    """The seed of a stage's work: from its own key `seed`, or the recipe's, and its name."""
    return derive(plan.seed if getattr(item.config, "seed", None) is None else item.config.seed, item.name)  # type: ignore[attr-defined]


def _wanted(item: StagePlan, seed: int, inputs: Mapping[str, str]) -> str:
    """The fingerprint that a finished stage must have to be up to date."""
    return manifest.fingerprint([item.verb, neutral_config(item.config, inputs), seed, code_version()])


def _run_stage(item: StagePlan, stage: Stage, fingerprints: Mapping[str, str]) -> str:
    """Do one stage unless it is up to date; returns the fingerprint of its content."""
    folder, run_folder = stage.folder, stage.folder.parent
    inputs = fingerprint_inputs(item.config, fingerprints)
    wanted = _wanted(item, stage.seed, inputs)
    finished = attempts.finished(folder, wanted)
    if finished is not None:
        progress.say(f"{item.name}: up to date")
        event(run_folder, "skipped", item.name)
        _tell(item, work=False)
        return manifest.content_fingerprint(finished)
    resumed = attempts.prepare(folder, wanted)
    stage.sources.update({name: run_folder / name for name in fingerprints})
    progress.say(f"{item.name}: continuing" if resumed else item.name if item.name == item.verb else f"{item.name}: {item.verb}")
    event(run_folder, "resumed" if resumed else "started", item.name)
    host_memory.release()  # what earlier stages freed is not this one's
    host_memory.reset_peak()
    _tell(item, work=True)
    spent = _work(item, stage, run_folder)
    facts = {
        "verb": item.verb, "stage": item.name, "fingerprint": wanted, "config": dump(item.config), "inputs": inputs, "seed": stage.seed,
        "metrics": stage.metrics, "versions": versions(), **stage.facts,
        "seconds": round(spent["seconds"], 2), "peak_bytes": spent["peak_bytes"],
    }  # fmt: skip
    estimate = stage.facts.get("estimate")
    if estimate and estimate.get("bytes"):
        facts["estimate"] = {**estimate, "bytes": spent["expected_bytes"]}
    sealed = attempts.seal(folder, stage.kind or VERBS[item.verb].kind, facts)
    event(run_folder, "finished", item.name, seconds=facts["seconds"])
    summary = stage.metrics.get("summary")
    progress.say(f"{item.name}: done in {spent['seconds']:.0f} s{f': {summary}' if summary else ''}")
    return manifest.content_fingerprint(sealed)


def _trains(item: StagePlan) -> bool:
    return hasattr(item.config, "train")


def _tell(item: StagePlan, *, work: bool) -> None:
    """Tell the other processes whether this stage is to be done, when they take part in it."""
    if _trains(item):
        distributed.told_by_main(work)


def _take_part(plan: Plan, folder: Path) -> None:
    """Train with the main process in the stages that it does; what a stage writes here goes to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix=f"luyen-rank{distributed.rank()}-") as scratch:
        earlier: dict[str, Path] = {}
        for item in plan.stages:
            if _trains(item) and distributed.told_by_main():
                stage = Stage(item.name, Path(scratch) / item.name, stage_seed(item, plan), dict(earlier))
                stage.folder.mkdir()
                load_verb(item.verb).run(item.config, stage)
            earlier[item.name] = folder / item.name


def _work(item: StagePlan, stage: Stage, run_folder: Path) -> dict[str, Any]:
    """Do the stage's work; returns what it took, earlier attempts that ended by themselves included (see `_spent`)."""
    before = storage.read_object(stage.folder / IN_PROGRESS)
    started = time.monotonic()
    try:
        load_verb(item.verb).run(item.config, stage)
    except BaseException as error:
        with contextlib.suppress(OSError, StorageError):
            storage.write_json(stage.folder / IN_PROGRESS, before | _spent(before, stage, started))
            name = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
            event(run_folder, name, item.name, error=str(error)[:500])
            if isinstance(error, UserError) and not isinstance(error, Interrupted):
                attempts.give_way(stage.folder)
        raise
    return _spent(before, stage, started)


def _spent(before: Mapping[str, Any], stage: Stage, started: float) -> dict[str, Any]:
    """Seconds of all attempts; the most memory that one of them took, and the most that was expected of one.

    An attempt that goes on in a new process holds less there than one that comes after other stages, and is expected to: so the peak of
    one would stand beside the prediction for another. Where training has measured a GPU's memory the processes' own, which an attempt
    that stopped before has alone, is another thing and does not count.
    """
    of_gpu = max(stage.facts.get("peak_bytes", 0), before.get("gpu_peak_bytes", 0))
    of_process = max(host_memory.peak(), before.get("process_peak_bytes", 0))
    expected = max(stage.facts.get("estimate", {}).get("bytes") or 0, before.get("expected_bytes", 0))
    return {
        "seconds": float(before.get("seconds", 0.0) + time.monotonic() - started), "expected_bytes": expected,
        "peak_bytes": of_gpu or of_process, "gpu_peak_bytes": of_gpu, "process_peak_bytes": of_process,
    }  # fmt: skip


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """One process per run folder; the lock dies with its process, so a crash leaves nothing behind."""
    with contextlib.ExitStack() as stack:
        with storage.storage_errors(folder):
            file = stack.enter_context(open(folder / ".lock", "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusy(f"another luyen works in {folder}", fix="Wait for it, or choose another folder with --out.") from error
        yield


class RunBusy(UserError):
    """Another process holds the run folder."""
