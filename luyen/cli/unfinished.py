"""Runs that stopped: where they stand, and the command that goes on with this very run, settings included."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luyen.cli.arguments import program, torchrun
from luyen.core import distributed
from luyen.core.config import describe, dump, load, parse_overrides, parse_yaml, read_yaml
from luyen.core.errors import ConfigError, DamagedFile, Interrupted, UserError
from luyen.core.folders import ADAPTER_FILE
from luyen.core.manifest import MANIFEST
from luyen.core.storage import read_object
from luyen.recipe.attempts import BEFORE
from luyen.recipe.graph import builtin_recipes, plan
from luyen.recipe.journal import EVENTS
from luyen.recipe.table import VERBS, load_config_class

RECIPE, ENVIRONMENT = "recipe.resolved.yaml", "environment.json"
_ALONE = {"processes": 1, "machines": 1, "restarts": 0}


def command_again(run: Path) -> str:
    """The command that continues a run from the same settings, quoted for a shell: its verb's, or `luyen run` with its recipe.

    A run that a launcher started in several processes is started by it again, in as many.
    """
    recipe = read_yaml(run / RECIPE)
    name = str(recipe.get("name", ""))
    words = _verb_words(name, recipe) or ["run", *(_builtin_words(name, recipe) or [str(run / RECIPE)])]
    usual = (Path("runs") / name).resolve() == run.resolve()
    return f"{_launcher(_launch_of(run))} {shlex.join([*words, *([] if usual else ['--out', str(run)])])}"


def _verb_words(name: str, recipe: Mapping[str, Any]) -> list[str]:
    """The words of `luyen VERB` for the run of a verb alone; none for a recipe, or where no words say the same."""
    stages = recipe.get("stages")
    if not isinstance(stages, dict) or list(stages) != [name] or name not in VERBS or stages[name].get("do") != name:
        return []
    values = {key: value for key, value in stages[name].items() if key != "do"}
    words: list[str] = []
    for field in describe(load_config_class(name)):
        value = _at(values, field.path)
        if field.default == "required" or parse_yaml(field.default) != value:
            words.append(f"{field.path}={_yaml(value)}")
    with contextlib.suppress(ConfigError):
        if dump(load(load_config_class(name), parse_overrides(words))) == values:
            return [name, *words]
    return []


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _yaml(value: object) -> str:
    if isinstance(value, str) and parse_yaml(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _builtin_words(name: str, recipe: Mapping[str, Any]) -> list[str]:
    """A recipe that comes with the package, by name and budget, if the run is just that."""
    path = builtin_recipes().get(name)
    if path is None:
        return []
    with contextlib.suppress(ConfigError):
        budgets = list(read_yaml(path).get("budgets") or {})
        for budget in (None, *budgets):
            if plan(path, {}, budget).source == recipe:
                return [name, *(["--budget", budget] if budget else [])]
    return []


def standing(run: Path) -> str:
    """Where a run stands, in a few words: "sft was stopped at step 3 of 40"; "" when its log tells nothing."""
    last = _last_event(run)
    stage, what = str(last.get("stage", "")), last.get("event")
    if what == "interrupted":
        return f"{stage} was stopped{_step(run, stage)}"
    if what == "failed":
        return f"{stage} failed{_step(run, stage)} ({str(last.get('error', ''))[:200] or 'no reason was given'})"
    if what in ("started", "resumed"):
        return f"{stage} was cut off or is still at work{_step(run, stage)}"
    return f"it stopped after {stage}" if stage else ""


def _last_event(run: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        for line in reversed((run / EVENTS).read_text(encoding="utf-8", errors="replace").splitlines()):
            with contextlib.suppress(ValueError):  # a line that a kill cut short
                row = json.loads(line)
                if isinstance(row, dict):
                    return row
    return {}


def _checkpoint(run: Path, stage: str) -> Path | None:
    return max((run / stage / "checkpoints").glob("step-*"), default=None)


def _step(run: Path, stage: str) -> str:
    """ " at step 3 of 40" by the newest checkpoint; "" for a stage that has none."""
    newest = _checkpoint(run, stage)
    if newest is None:
        return ""
    steps = _at(read_yaml(run / RECIPE), f"stages.{stage}.train.steps")
    return f" at step {int(newest.name.removeprefix('step-')):,}" + (f" of {steps:,}" if isinstance(steps, int) else "")


@contextlib.contextmanager
def told_on_stop(run: Path) -> Iterator[None]:
    """When a signal stops the work inside, the error says in which stage, at which step, where the checkpoint is, and how to go on.

    A second Ctrl-C, which stops at once, is told in the same way; the step is always that of the newest checkpoint.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        last = _last_event(run)
        stage = str(last.get("stage", ""))
        if last.get("event") != "interrupted":
            where = f" after stage {stage}" if stage else ""
        else:
            newest = _checkpoint(run, stage)
            where = f" in stage {stage}" + (f"{_step(run, stage)}, saved in {newest}" if newest else "; what is done is kept")
        command = f"{_launcher(distributed.launch())} {shlex.join(sys.argv[1:])}"
        number = error.exit_code - 128 if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(number, f"stopped{where}. Go on with: {command}") from error


def _launcher(launch: Mapping[str, int]) -> str:
    """How this program is started again as it was."""
    return program() if launch["processes"] == 1 else torchrun(launch)


def _launch_of(run: Path) -> dict[str, int]:
    """How a run was started last; as one process where its record does not tell."""
    with contextlib.suppress(DamagedFile):
        found = read_object(run / ENVIRONMENT).get("launch")
        if isinstance(found, dict) and all(isinstance(found.get(name), int) and found[name] >= least for name, least in _ALONE.items()):
            return {name: found[name] for name in _ALONE}
    return dict(_ALONE)


def verbs_of(run: Path) -> dict[str, str]:
    """Stage -> verb, in the recipe's order."""
    stages = read_yaml(run / RECIPE).get("stages")
    if not isinstance(stages, dict):
        return {}
    return {str(name): str(stage.get("do")) for name, stage in stages.items() if isinstance(stage, dict)}


def makes_model(run: Path) -> bool:
    """Whether a stage of the run is to make a model."""
    return any(verb in VERBS and VERBS[verb].kind == "model" for verb in verbs_of(run).values())


def no_adapter(name: str) -> UserError | None:
    """What to tell someone who names a run or a stage as an adapter: that it is not finished, or where its adapter is; None for others."""
    path = Path(name).expanduser().resolve()
    run = next((folder for folder in (path, *path.parents[:2]) if (folder / RECIPE).is_file()), None)
    if run is None:
        return None
    stages = [run / stage for stage in verbs_of(run) if path == run or run / stage in (path, *path.parents)]
    if made := [stage / "adapter" for stage in stages if (stage / "adapter" / ADAPTER_FILE).is_file()]:
        where = " or ".join(shlex.quote(os.path.relpath(folder)) for folder in made)
        return UserError(f"{name} is a run", expected="one adapter", fix=f"Name {where}.")
    if all((stage / MANIFEST).is_file() for stage in stages):
        return None
    where = standing(run)
    what = f"the run {os.path.relpath(run)} is not finished, so it has no adapter yet" + (f": {where}" if where else "")
    return UserError(what, fix=f"Go on with: {command_again(run)}")


def no_model(run: Path) -> UserError:
    """What to tell someone who wants to talk to a run that has no finished model."""
    if not makes_model(run):
        made = ", ".join(verbs_of(run)) or "no stages"
        return UserError(f"the run {run} makes no model", found=made, fix=f"Start one with `{program()} run quickstart`, or name a folder.")
    where = standing(run)
    fix = f"Continue it with: {command_again(run)}"
    kept = [path.parent for path in (run / BEFORE).glob(f"*/{MANIFEST}") if (path.parent / "model" / "config.json").is_file()]
    if kept:
        newest = max(kept, key=lambda folder: (folder / MANIFEST).stat().st_mtime)
        fix = f"Talk to an earlier one with: {program()} chat {shlex.quote(str(newest / 'model'))}. {fix}"
    return UserError(f"the run {run} has no finished model yet" + (f": {where}" if where else ""), fix=fix)
