"""The learning-rate range test of a recipe's stage: its model, data, batches and optimizer, with a rate that rises from step to step.

The stages before are run once, in the folder `shared`, as for a search. The test itself writes nothing but its result, `rates.json`; it
takes a hundred steps, so a stopped one begins anew.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from luyen.core import distributed, progress, storage
from luyen.core.config import parse_overrides
from luyen.core.errors import LuyenError, UserError
from luyen.engine.algorithm import Algorithm
from luyen.engine.config import TrainConfig
from luyen.engine.rate_finder import BROKEN, RateCurve, find
from luyen.recipe.graph import Plan, plan
from luyen.recipe.inputs import check_inputs
from luyen.recipe.run import lock_folder, run, stage_seed
from luyen.recipe.search import ASKED, SHARED, needed, training, trial_plan
from luyen.recipe.search_space import RANGE, Space, read_space
from luyen.recipe.stage import Stage
from luyen.recipe.table import load_verb

RESULT = "rates.json"
KEY = "train.optimizer.learning_rate"
USUAL = ("1e-6", "1.0")
"""The rates that are tried where no range is given."""
USUAL_OF = {"sgd": ("1e-4", "100.0")}
"""Others, of optimizers whose steps are not of the rate's size."""


class _Tried(LuyenError):
    """No failure: the stage ends here, because the test has its curve."""

    def __init__(self, curve: RateCurve) -> None:
        self.curve = curve


def rate_space(recipe: Path, words: Sequence[str], budget: str | None, stage: str | None) -> Space:
    """The stage and the rates to try: `stage.train.optimizer.learning_rate=LOW..HIGH`, or the usual ones of its optimizer.

    Raises ConfigError for wrong keys and values, UserError where it is not clear which stage is meant or it does not train.
    """
    if not any(RANGE.fullmatch(word.partition("=")[2].strip()) for word in words):
        whole = plan(recipe, parse_overrides(words), budget)
        stage = stage or _only_stage(whole)
        name = training(whole, stage).optimizer.name
        words = [*words, f"{stage}.{KEY}={'..'.join(USUAL_OF.get(name, USUAL))}"]
    space = read_space(recipe, words, budget, stage)
    others = [item.key for item in space.dimensions if item.key != f"{space.stage}.{KEY}" or item.choices]
    if others:
        raise UserError(
            "the learning-rate test", found=f"a range or choice of {', '.join(others)}", expected=f"{space.stage}.{KEY}=LOW..HIGH alone",
            fix="Give other keys one value, or leave --rate-finder out.",
        )  # fmt: skip
    training(space.plan({}), space.stage)
    return space


def _only_stage(whole: Plan) -> str:
    names = [item.name for item in whole.stages if hasattr(item.config, "train")]
    if len(names) != 1:
        found = f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
        raise UserError("which stage's learning rate", found=f"{found} in recipe {whole.name}", expected="one", fix="Name it by --stage.")
    return names[0]


def try_rates(space: Space, steps: int, folder: Path) -> dict[str, Any]:
    """Bring the stages before up to date in `folder`, do the test, and return what `rates.json` then holds."""
    if distributed.ranks() > 1:
        found = f"{distributed.ranks()} processes"
        raise UserError("the learning-rate test", found=found, expected="one", fix="Start it without torchrun.")
    if (folder / ASKED).exists():
        raise UserError(f"{folder} holds a search", fix="Choose another folder with --out.")
    base = space.plan({})
    before = needed(base, space.stage)
    check_inputs(before, folder / SHARED)
    with storage.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    (rates,) = space.dimensions
    with lock_folder(folder):
        run(before, folder / SHARED)
        alone = trial_plan(base, space.stage, folder / SHARED)
        progress.say(f"{space.stage}: {steps} steps with learning rates from {rates.low:g} to {rates.high:g}")
        curve = _curve(alone, steps, rates.low, rates.high)
        found = result(space, base, steps, curve)
        storage.write_json(folder / RESULT, found)
    return found


def _curve(alone: Plan, steps: int, low: float, high: float) -> RateCurve:
    """Set the only stage of `alone` up as for training, with the test in the loop's place; what it writes is thrown away."""
    (item,) = alone.stages
    seed = stage_seed(item, alone)

    def instead(algorithm: Algorithm, config: TrainConfig) -> NoReturn:
        """The test in the loop's place."""
        raise _Tried(find(algorithm, config, smallest=low, largest=high, steps=steps, seed=seed))

    with tempfile.TemporaryDirectory(prefix="luyen-rates-") as scratch:
        try:
            load_verb(item.verb).run(item.config, Stage(item.name, Path(scratch), seed, instead=instead))
        except _Tried as tried:
            return tried.curve
    raise AssertionError(f"{item.verb} has a train section and no training")


def result(space: Space, base: Plan, steps: int, curve: RateCurve) -> dict[str, Any]:
    """What the test found, for JSON: the curve, the rate to take as a setting to paste (or None), and what it means in words."""
    (rates,) = space.dimensions
    own = training(base, space.stage).optimizer
    taken = None if curve.suggestion is None else float(f"{curve.suggestion:.1e}")
    return {
        "recipe": base.name, "seed": base.seed, "stage": space.stage, "optimizer": own.name, "own": own.learning_rate, "steps": steps,
        "smallest": rates.low, "largest": rates.high, **dataclasses.asdict(curve), "taken": taken,
        "settings": None if taken is None else f"{rates.key}={taken:g}", "verdict": verdict(curve, taken, rates.low, rates.high),
        "remarks": _remarks(steps, own.learning_rate, taken),
    }  # fmt: skip


def verdict(curve: RateCurve, taken: float | None, smallest: float, largest: float) -> str:
    """Which rate to take, and where the loss diverged, in a sentence."""
    if curve.broken is not None:
        diverged = f"diverges at {curve.broken:.2g}"
    else:
        diverged = f"does not diverge up to {largest:g} ({curve.averaged[-1]:.3g} there, {min(curve.averaged):.3g} at its lowest)"
    if taken is None:
        return f"No learning rate from {smallest:g} to {largest:g} made the loss fall, and it {diverged}."
    return f"Take learning rate {taken:g}, where the loss falls fastest: it is lowest at {curve.lowest:.2g} and {diverged}."


def _remarks(steps: int, own: float, taken: float | None) -> list[str]:
    """What must be known before the rate is believed."""
    told = [f"The recipe has {own:g}.", f"It diverges where the loss after an update is not finite, or {BROKEN:g} times its lowest."]
    if taken is None:
        return [*told, "Try more steps by --steps, or other rates by a range of the key."]
    whole_run = "the best for a whole run may be another, which luyen search looks for in a range around it"
    return [*told, f"It is a peak rate to begin with, by {steps} updates on one order of the data; {whole_run}."]
