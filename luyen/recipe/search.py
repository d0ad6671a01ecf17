"""Search for settings of one training stage by trials that are ordinary runs of it; optuna's part is in search_study.py.

A search's folder holds `asked.json` (what is searched), `shared` (a run of the stages that the searched one needs), `trials/NUMBER` (a run
of the stage each, and its `trial.json`) and `search.json`, the result. The `trial.json` files are the study on disk: plain JSON, each
replaced as a whole, so that a kill at any moment leaves no half of one. optuna's journal on file would be JSON too, but two
sources of one truth may differ, and its lines record single calls, between which a kill leaves a trial that has only some of its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from luyen.core import distributed, interrupt, manifest, progress, storage
from luyen.core.config import dump, input_fields
from luyen.core.errors import LuyenError, NonFinite, UserError, nearest
from luyen.recipe.environment import code_version
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.inputs import check_inputs, fingerprint_inputs
from luyen.recipe.run import RunBusy, lock_folder, run
from luyen.recipe.search_space import Space, settings
from luyen.recipe.search_study import COMPLETE, FAILED, PRUNED, RUNNING, Judge, Trial, library

RESULT, ASKED, TRIAL = "search.json", "asked.json", "trial.json"
SHARED, TRIALS = "shared", "trials"
MORE_WORK = ("batch.rows", "batch.length", "train.steps", "train.accumulation")
"""Keys with which trials read different numbers of tokens."""


@dataclass(frozen=True)
class Goal:
    """What is looked for and how long."""

    trials: int
    pruner: str = "median"
    """One of PRUNERS."""
    metric: str = "heldout_bits_per_byte"
    """A figure of the stage's evaluations, or another number among its metrics."""
    direction: str = "minimize"


class WrongGoal(UserError):
    """The stage does not measure what the search is for; no other trial would."""


class Pruned(LuyenError):
    """The trial is worse than others were at this step; the search goes on with the next."""


def search(space: Space, goal: Goal, folder: Path) -> dict[str, Any]:
    """Run or continue a search in `folder`; returns what `search.json` holds. Raises UserError when the folder is another search's."""
    library()
    if distributed.ranks() > 1:
        raise UserError("a search", found=f"{distributed.ranks()} processes", expected="one", fix="Start it without torchrun.")
    base = space.plan({item.key: item.ends[0] for item in space.dimensions})
    train = training(base, space.stage)
    before = needed(base, space.stage)
    check_inputs(before, folder / SHARED)
    with storage.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        _same_search(folder, _asked(space, goal, base, before))
        run(before, folder / SHARED)
        alone = trial_plan(base, space.stage, folder / SHARED)
        _same_search(folder, {"inputs": sorted(fingerprint_inputs(alone.stages[0].config, {}).values())})
        judge = Judge(space.dimensions, goal.direction, goal.pruner, int(train.evaluate_every or train.steps), base.seed)
        trials = read_trials(folder)
        while len(trials) < goal.trials or trials[-1].state == RUNNING:
            interrupt.check()
            if not trials or trials[-1].state != RUNNING:
                own = None if trials else space.own()
                trials.append(Trial(len(trials), own or judge.propose(trials), own=own is not None))
                _write(folder, trials[-1])
            _try(space, goal, judge, trials, folder)
            storage.write_json(folder / RESULT, result(space, goal, judge, trials, base))
        found = result(space, goal, judge, trials, base)
        storage.write_json(folder / RESULT, found)
    return found


def at_work(folder: Path) -> Path:
    """The run inside a search's folder that was worked on last: the newest trial, or the stages that all share."""
    return max((path.parent for path in folder.glob(f"{TRIALS}/*/{TRIAL}")), default=folder / SHARED)


def needed(plan: Plan, stage: str) -> Plan:
    """The stages whose results `stage` uses, itself excluded; every trial shares them."""
    names, wanted = {item.name: item for item in plan.stages}, [stage]
    for name in wanted:
        wanted += [other for other in names[name].inputs if other not in wanted]
    return _part(plan, tuple(item for item in plan.stages if item.name in wanted[1:]))


def _part(plan: Plan, stages: tuple[StagePlan, ...]) -> Plan:
    resolved = {**plan.source, "stages": {item.name: {"do": item.verb, **dump(item.config)} for item in stages}}
    return Plan(plan.name, plan.about, plan.seed, plan.budget, stages, resolved)


def trial_plan(plan: Plan, stage: str, shared: Path) -> Plan:
    """The searched stage alone; what it needs of other stages are paths into the shared run."""
    item = _stage(plan, stage)
    names = set(item.inputs)

    def located(value: Any) -> Any:
        if isinstance(value, str):
            return str(shared / value) if value in names else value
        if isinstance(value, dict):
            return {key: located(part) for key, part in value.items()}
        return [located(part) for part in value] if isinstance(value, list) else value

    inputs = {name: located(getattr(item.config, name)) for name in input_fields(type(item.config))}
    return _part(plan, (StagePlan(item.name, item.verb, item.config.model_copy(update=inputs), ()),))


def _stage(plan: Plan, stage: str) -> StagePlan:
    return next(item for item in plan.stages if item.name == stage)


def training(plan: Plan, stage: str) -> Any:
    """The training section of the searched stage. Raises UserError where it has none, and where there is no such stage."""
    names = [item.name for item in plan.stages]
    if stage not in names:
        raise UserError(f"no stage {stage!r} in recipe {plan.name}", fix=nearest(stage, names))
    config: Any = _stage(plan, stage).config
    if not hasattr(config, "train"):
        raise UserError(f"stage {stage} does not train", expected="keys of a stage that does", fix="See luyen search --help.")
    return config.train


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a search's folder in order."""
    return [Trial(**storage.read_object(path)) for path in sorted(folder.glob(f"{TRIALS}/*/{TRIAL}"))]


def _place(folder: Path, number: int) -> Path:
    return folder / TRIALS / f"{number:04d}"


def _write(folder: Path, trial: Trial) -> None:
    storage.write_json(_place(folder, trial.number) / TRIAL, asdict(trial))


def _asked(space: Space, goal: Goal, base: Plan, before: Plan) -> dict[str, Any]:
    """What must be the same for a search to be continued; more trials are the same search."""
    stages = {item.name: {"do": item.verb, **dump(item.config)} for item in (*before.stages, _stage(base, space.stage))}
    return {"recipe": base.name, "seed": base.seed, "ranges": [item.as_dict() for item in space.dimensions], "settings": stages,
            "pruner": goal.pruner, "metric": goal.metric, "direction": goal.direction, "code version": code_version()}  # fmt: skip


def _same_search(folder: Path, asked: Mapping[str, Any]) -> None:
    """Keep what was asked; UserError when the folder holds a search for something else, whose trials cannot be compared."""
    path = folder / ASKED
    before = storage.read_object(path) if path.exists() else {}
    different = [key for key, value in asked.items() if key in before and before[key] != value]
    if different:
        raise UserError(f"{folder} holds a search with other {' and '.join(different)}", fix="Choose another folder with --out.")
    if {**before, **asked} != before:
        storage.write_json(path, {**before, **asked})


def _try(space: Space, goal: Goal, judge: Judge, trials: list[Trial], folder: Path) -> None:
    """Run the last trial or continue it; what came of it is written and told."""
    trial = trials[-1]
    what = "the recipe's own settings: " if trial.own else ""
    progress.say(f"trial {trial.number + 1} of {max(goal.trials, len(trials))}: {what}{' '.join(settings(trial.params))}")
    place = _place(folder, trial.number)
    try:
        planned = trial_plan(space.plan(trial.params), space.stage, folder / SHARED)
        last = training(planned, space.stage).steps
        run(planned, place, measured={space.stage: _measured(goal, judge, trials, folder, last)})
        trial.value, trial.state = _value(manifest.read(place / space.stage), goal), COMPLETE
    except Pruned as pruned:
        trial.state, trial.reason = PRUNED, str(pruned)
    except (NonFinite, UserError) as error:
        if isinstance(error, WrongGoal | RunBusy):
            raise
        trial.state, trial.reason = FAILED, str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:
        trial.state, trial.reason = FAILED, f"out of memory: {' '.join(str(error).split())[:200]}"
    _write(folder, trial)
    told = f"{goal.metric} {trial.value:.4f}" if trial.value is not None else trial.reason
    progress.say(f"trial {trial.number + 1}: {trial.state}, {told}")


def _measured(goal: Goal, judge: Judge, trials: list[Trial], folder: Path, last: int) -> Callable[[int, Mapping[str, float]], None]:
    """What the training of the last trial tells at every evaluation."""
    trial = trials[-1]

    def measured(step: int, figures: Mapping[str, float]) -> None:
        """Keep the figure of an evaluation; raises Pruned, NonFinite or WrongGoal to end the trial."""
        value = figures.get(goal.metric)
        if value is None and goal.pruner != "none":
            raise WrongGoal(f"pruning by {goal.metric}", found=f"evaluations with {', '.join(figures) or 'nothing'}",
                            fix="Name one of them by --metric, or take --pruner none.")  # fmt: skip
        if value is None or not step:
            return
        if not math.isfinite(value):
            raise NonFinite(f"{goal.metric} is {value} after step {step}")
        trial.values[str(step)] = value
        ended = judge.hopeless(trials, step)
        _write(folder, trial)
        if ended and step < last:
            raise Pruned(f"after step {step} of {last}: {goal.metric} {value:.4f}")

    return measured


def _value(sealed: Mapping[str, Any], goal: Goal) -> float:
    metrics = sealed["metrics"]
    known = {**metrics, **metrics.get("evaluation", {})}
    value = known.get(goal.metric)
    if not isinstance(value, int | float) or isinstance(value, bool):
        numbers = sorted(name for name, found in known.items() if isinstance(found, int | float))
        raise WrongGoal(f"the stage measures no {goal.metric!r}", fix=f"--metric is one of {', '.join(numbers)}.")
    if not math.isfinite(value):
        raise NonFinite(f"{goal.metric} is {value}")
    return float(value)


def result(space: Space, goal: Goal, judge: Judge, trials: list[Trial], plan: Plan) -> dict[str, Any]:
    """What the search found, for JSON; without a completed trial `best` is None."""
    complete = [trial for trial in trials if trial.state == COMPLETE and trial.value is not None]
    sign = 1 if goal.direction == "minimize" else -1
    ordered = sorted(complete, key=lambda trial: sign * (trial.value or 0.0))
    best = ordered[0] if ordered else None
    return {
        "recipe": plan.name, "seed": plan.seed, "stage": space.stage, "metric": goal.metric, "direction": goal.direction,
        "pruner": goal.pruner, "space": [item.as_dict() for item in space.dimensions], "trials": [asdict(trial) for trial in trials],
        "best": best and {"number": best.number, "value": best.value, "params": best.params, "settings": " ".join(settings(best.params))},
        "importance": judge.importance(trials), "remarks": remarks(space, goal, trials, ordered),
    }  # fmt: skip


def remarks(space: Space, goal: Goal, trials: list[Trial], ordered: list[Trial]) -> list[str]:
    """What must be known before the result is believed; `ordered` are the completed trials, the best first."""
    counts = {state: sum(trial.state == state for trial in trials) for state in (COMPLETE, PRUNED, FAILED)}
    stand = "1 trial stands" if len(trials) == 1 else f"{len(trials)} trials stand"
    ended = f"{stand} behind this: {counts[COMPLETE]} complete, {counts[PRUNED]} pruned, {counts[FAILED]} failed."
    told = [f"{ended} All have one seed; how much another seed changes was not measured, so train the best few again with other seeds."]
    if len(ordered) > 1:
        first, second = (trial.value or 0.0 for trial in ordered[:2])
        told.append(f"The best is {abs(first - second):.4f} better than the next.")
    own = next((trial for trial in ordered if trial.own), None)
    if own is not None and own is not ordered[0]:
        told.append(f"The recipe's own settings gave {own.value:.4f} (trial {own.number + 1}).")
    elif own is not None:
        told.append("The recipe's own settings are the best that was found.")
    varied = [item.key for item in space.dimensions if item.key.partition(".")[2] in MORE_WORK]
    if varied:
        told.append(f"Trials differ in {' and '.join(varied)}, so they read different numbers of tokens and take different times.")
    if not any(len(trial.values) > 1 for trial in trials) and goal.pruner != "none":
        told.append("No trial was evaluated before its last step, so nothing could be pruned: set a smaller train.evaluate_every.")
    return told
