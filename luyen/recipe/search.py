"""Search for settings of one training stage: tree-structured Parzen estimators propose, hopeless trials end early.

TPE: Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization", section 4. Pruning: below the median of the trials before at
the same step (Golovin et al., 2017, section 3.2.2), or asynchronous successive halving (Li et al., 2020, arXiv:1810.05934).
Importance: PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255).

The study on disk is one `trial.json` for each trial, written by us: optuna's own journal makes snapshots with a serializer that runs
code when it is read. optuna holds the study in memory, made anew from those files before each trial, with a seed of the trial's number, so
that a killed search proposes what it would have proposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luyen.core import distributed, manifest, progress, storage
from luyen.core.config import dump, input_fields
from luyen.core.errors import LuyenError, NonFinite, UserError
from luyen.core.seed import derive
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.run import RunBusy, run
from luyen.recipe.search_space import Dimension, Space, settings

RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
STARTUP = 5
"""Trials that are drawn at random before TPE proposes, and before the median prunes."""
RESULT, ASKED, TRIAL = "search.json", "asked.json", "trial.json"


@dataclass(frozen=True)
class Goal:
    """What is looked for and how long."""

    trials: int
    pruner: str = "median"
    """median, asha or none."""
    metric: str = "heldout_bits_per_byte"
    """A figure of the stage's evaluations, or another number among its metrics."""
    direction: str = "minimize"


@dataclass
class Trial:
    """One set of values and what came of it; `values` are the figures by step."""

    number: int
    params: dict[str, Any]
    state: str = RUNNING
    value: float | None = None
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, float] = field(default_factory=dict)
    """Successive halving: the figure at each rung that it came to."""


class WrongGoal(UserError):
    """The stage does not measure what the search is for; no other trial would."""


class Pruned(LuyenError):
    """The trial is worse than others were at this step; the search goes on with the next."""


def search(space: Space, goal: Goal, folder: Path) -> dict[str, Any]:
    """Run or continue a search in `folder`; returns what `search.json` holds. Raises UserError when the folder is another search's."""
    optuna = library()
    if distributed.ranks() > 1:
        raise UserError("a search", found=f"{distributed.ranks()} processes", expected="one", fix="Start it without torchrun.")
    base = space.plan({item.key: item.ends[0] for item in space.dimensions})
    _train(base, space.stage)
    folder.mkdir(parents=True, exist_ok=True)
    _same_search(space, goal, folder, base)
    run(needed(base, space.stage), folder / "shared")
    trials = read_trials(folder)
    while len(trials) < goal.trials or any(trial.state == RUNNING for trial in trials):
        if not trials or trials[-1].state != RUNNING:
            trials.append(_propose(optuna, space, goal, trials, base.seed))
            _write(folder, trials[-1])
        _try(optuna, space, goal, trials, folder)
        _tell(trials[-1])
        storage.write_json(folder / RESULT, result(optuna, space, goal, trials))
    found = result(optuna, space, goal, trials)
    storage.write_json(folder / RESULT, found)
    if found["best"] is None:
        raise UserError("no trial of the search was completed", found=trials[-1].reason or trials[-1].state, fix="Choose other ranges.")
    return found


def library() -> Any:
    """optuna, quiet. Raises UserError with the remedy when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("luyen search needs optuna, which is not installed", fix="pip install 'luyen[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def needed(plan: Plan, stage: str) -> Plan:
    """The stages whose results `stage` uses, itself excluded; every trial shares them."""
    names, wanted = {item.name: item for item in plan.stages}, [stage]
    for name in wanted:
        wanted += [other for other in names[name].inputs if other not in wanted]
    kept = tuple(item for item in plan.stages if item.name in wanted[1:])
    return _part(plan, kept)


def _part(plan: Plan, stages: tuple[StagePlan, ...]) -> Plan:
    resolved = {**plan.source, "stages": {item.name: {"do": item.verb, **dump(item.config)} for item in stages}}
    return Plan(plan.name, plan.about, plan.seed, plan.budget, stages, resolved)


def trial_plan(plan: Plan, stage: str, shared: Path) -> Plan:
    """The searched stage alone; what it needs of other stages are paths into the shared run."""
    item = next(item for item in plan.stages if item.name == stage)
    names = set(item.inputs)

    def located(value: Any) -> Any:
        if isinstance(value, str):
            return str(shared / value) if value in names else value
        if isinstance(value, dict):
            return {key: located(part) for key, part in value.items()}
        return [located(part) for part in value] if isinstance(value, list) else value

    inputs = {name: located(getattr(item.config, name)) for name in input_fields(type(item.config))}
    return _part(plan, (StagePlan(item.name, item.verb, item.config.model_copy(update=inputs), ()),))


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a search's folder in order."""
    return [Trial(**storage.read_object(path)) for path in sorted(folder.glob(f"trials/*/{TRIAL}"))]


def _place(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:04d}"


def _write(folder: Path, trial: Trial) -> None:
    place = _place(folder, trial.number)
    place.mkdir(parents=True, exist_ok=True)
    storage.write_json(place / TRIAL, asdict(trial))


def _same_search(space: Space, goal: Goal, folder: Path, base: Plan) -> None:
    """Keep what was asked; UserError when the folder holds a search for something else. More trials are the same search."""
    asked = {"recipe": dict(base.source), "space": [item.as_dict() for item in space.dimensions], "pruner": goal.pruner,
             "metric": goal.metric, "direction": goal.direction}  # fmt: skip
    path = folder / ASKED
    if path.exists() and storage.read_object(path) != asked:
        raise UserError(f"{folder} holds a search with other settings", fix="Choose another folder with --out.")
    storage.write_json(path, asked)


def _study(optuna: Any, space: Space, goal: Goal, trials: list[Trial], seed: int) -> Any:
    """The finished trials as a study in memory."""
    pruners = {
        "none": optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
        "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=_first_evaluation(space)),
    }
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=STARTUP)
    study = optuna.create_study(direction=goal.direction, sampler=sampler, pruner=pruners[goal.pruner])
    states = {COMPLETE: optuna.trial.TrialState.COMPLETE, PRUNED: optuna.trial.TrialState.PRUNED, FAILED: optuna.trial.TrialState.FAIL}
    kinds = {item.key: _distribution(optuna, item) for item in space.dimensions}
    for trial in trials:
        if trial.state == RUNNING:
            continue
        finite = {int(step): value for step, value in trial.values.items()}
        value = trial.value if trial.state == COMPLETE else finite[max(finite)] if trial.state == PRUNED else None
        study.add_trial(optuna.trial.create_trial(state=states[trial.state], params=trial.params, distributions=kinds, value=value,
                                                  intermediate_values=finite, system_attrs=trial.rungs))  # fmt: skip
    return study


def _first_evaluation(space: Space) -> int:
    """The step of the first rung."""
    train = _train(space.plan({item.key: item.ends[0] for item in space.dimensions}), space.stage)
    return int(train.evaluate_every or train.steps)


def _train(plan: Plan, stage: str) -> Any:
    config: Any = next(item.config for item in plan.stages if item.name == stage)
    if not hasattr(config, "train"):
        raise UserError(f"stage {stage} does not train", expected="keys of a stage that does", fix="See luyen search --help.")
    return config.train


def _hopeless(optuna: Any, space: Space, goal: Goal, trials: list[Trial], step: int) -> bool:
    """Whether the pruner ends the last trial here."""
    trial, study = trials[-1], _study(optuna, space, goal, trials[:-1], 0)
    study.add_trial(optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=trial.params, system_attrs=trial.rungs,
        distributions={item.key: _distribution(optuna, item) for item in space.dimensions},
        intermediate_values={int(at): figure for at, figure in trial.values.items() if int(at) <= step},
    ))  # fmt: skip
    ended = study.pruner.prune(study, study.get_trials(deepcopy=False)[-1])
    trial.rungs = dict(study.get_trials(deepcopy=False)[-1].system_attrs)
    return bool(ended)


def _distribution(optuna: Any, item: Dimension) -> Any:
    if item.choices:
        return optuna.distributions.CategoricalDistribution(item.choices)
    if item.whole:
        return optuna.distributions.IntDistribution(int(item.low), int(item.high), log=item.log)
    return optuna.distributions.FloatDistribution(item.low, item.high, log=item.log)


def _propose(optuna: Any, space: Space, goal: Goal, trials: list[Trial], seed: int) -> Trial:
    study = _study(optuna, space, goal, trials, derive(seed, "search", len(trials)))
    asked = study.ask({item.key: _distribution(optuna, item) for item in space.dimensions})
    return Trial(len(trials), dict(sorted(asked.params.items())))  # in the order in which they come back from the file


def _try(optuna: Any, space: Space, goal: Goal, trials: list[Trial], folder: Path) -> None:
    """Run the last trial or continue it; what came of it is written."""
    trial = trials[-1]
    progress.say(f"trial {trial.number + 1} of {goal.trials}: {' '.join(settings(trial.params))}")
    try:
        planned = space.plan(trial.params)
    except UserError as error:
        trial.state, trial.reason = FAILED, str(error)
        _write(folder, trial)
        return
    last = _train(planned, space.stage).steps

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
        ended = _hopeless(optuna, space, goal, trials, step)
        _write(folder, trial)
        if ended and step < last:
            raise Pruned(f"after step {step}: {goal.metric} {value:.4f}")

    place = _place(folder, trial.number)
    try:
        run(trial_plan(planned, space.stage, folder / "shared"), place, measured={space.stage: measured})
        trial.value = _value(manifest.read(place / space.stage), goal)
        trial.state = COMPLETE
    except Pruned as pruned:
        trial.state, trial.reason = PRUNED, str(pruned)
    except (NonFinite, UserError) as error:
        if isinstance(error, WrongGoal | RunBusy):
            raise
        trial.state, trial.reason = FAILED, str(error)
    _write(folder, trial)


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


def _tell(trial: Trial) -> None:
    told = f"{trial.value:.4f}" if trial.value is not None else trial.reason
    progress.say(f"trial {trial.number + 1}: {trial.state}{f', {told}' if told else ''}")


def result(optuna: Any, space: Space, goal: Goal, trials: list[Trial]) -> dict[str, Any]:
    """What the search found, for JSON."""
    complete = [trial for trial in trials if trial.state == COMPLETE and trial.value is not None]
    sign = 1 if goal.direction == "minimize" else -1
    best = min(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)
    return {
        "metric": goal.metric, "direction": goal.direction, "pruner": goal.pruner, "stage": space.stage,
        "space": [item.as_dict() for item in space.dimensions], "trials": [asdict(trial) for trial in trials],
        "best": None if best is None else {"number": best.number, "value": best.value, "params": best.params,
                                           "settings": " ".join(settings(best.params))},
        "importance": _importance(optuna, space, goal, trials, len(complete)),
    }  # fmt: skip


def _importance(optuna: Any, space: Space, goal: Goal, trials: list[Trial], complete: int) -> dict[str, float] | None:
    """Each key's share; None with too few completed trials to say."""
    if complete < 2 * STARTUP:
        return None
    study = _study(optuna, space, goal, trials, 0)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return {key: float(share) for key, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}
