"""A recipe: stages by name, each with its verb, its inputs (other stages or paths) and what differs from the defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luyen.core.config import Config, dump, input_fields, load, merge, read_yaml, set_dotted
from luyen.core.errors import ConfigError, nearest
from luyen.recipe.table import VERBS, load_config_class

BUILTIN = (Path(__file__).parent / "builtin", Path(__file__).parents[2] / "recipes")
"""Where recipes with a plain name are: inside an installed wheel, or at the top of a checkout."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What a recipe or a stage may be called: both become folders."""


class Recipe(Config):
    """The file's content before its stages are checked."""

    version: int
    """Format of the file; 1."""
    name: str
    """Name of the run's folder."""
    about: str = ""
    """One sentence on what the recipe makes."""
    seed: int = 0
    """Seed of every stage."""
    stages: dict[str, dict[str, Any]]
    """Stage name -> {do: verb, key: value ...}."""
    budgets: dict[str, dict[str, Any]] = {}
    """Budget name -> {stage.key: value}: what `--budget NAME` changes. The first is the default."""


@dataclass(frozen=True)
class StagePlan:
    """A stage whose config is checked."""

    name: str
    verb: str
    config: Config
    inputs: tuple[str, ...]
    """Names of the stages that it needs."""


@dataclass(frozen=True)
class Plan:
    """A recipe whose every key is checked, stages in an order in which each follows its inputs."""

    name: str
    about: str
    seed: int
    budget: str
    stages: tuple[StagePlan, ...]
    source: Mapping[str, Any]
    """The recipe as resolved: the same file again reproduces this plan."""


def builtin_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    for folder in BUILTIN:
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_recipe(name: str) -> Path:
    """A recipe's file from a path or a built-in name. Raises ConfigError naming the nearest."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or os.sep in name:
        if not path.is_file():
            raise ConfigError(f"no recipe file {name}", fix="Check the path, or run `luyen recipes` for the built-in ones.")
        return path
    known = builtin_recipes()
    if name not in known:
        raise ConfigError(f"no recipe {name!r}", fix=nearest(name, known))
    return known[name]


def plan(path: Path, overrides: Mapping[str, Any], budget: str | None = None) -> Plan:
    """Read a recipe, apply a budget and overrides (nested, by stage), check every stage's config and order the stages."""
    values = read_yaml(path)
    recipe = load(Recipe, values, str(path))
    if not NAME.fullmatch(recipe.name):
        raise ConfigError(f"{path}: name", found=repr(recipe.name), expected="letters, digits, _ and -")
    if recipe.version != 1:
        raise ConfigError(f"{path}: version", found=recipe.version, expected=1, fix="This Luyện reads version 1.")
    chosen = _choose_budget(recipe, budget)
    stages: dict[str, Any] = {name: dict(stage) for name, stage in recipe.stages.items()}
    for key, value in recipe.budgets.get(chosen, {}).items():
        if "." not in key:
            raise ConfigError(f"{path}: budget {chosen}: cannot set {key!r}", expected="stage.key: value")
        _check_stage(key.split(".")[0], stages, f"{path}: budget {chosen}")
        set_dotted(stages, key, value)
    seed = overrides.get("seed", recipe.seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError("seed", found=repr(seed), expected="a whole number")
    for name, changes in overrides.items():
        if name == "seed":
            continue
        _check_stage(name, stages, "command line")
        if not isinstance(changes, Mapping):
            raise ConfigError(f"cannot set {name}", found=repr(changes), expected=f"{name}.key=value")
        stages[name] = merge(stages[name], changes)
    plans = {name: _plan_stage(name, stage, stages, path) for name, stage in stages.items()}
    resolved = {
        "version": 1,
        "name": recipe.name,
        "about": recipe.about,
        "seed": seed,
        "stages": {name: {"do": item.verb, **dump(item.config)} for name, item in plans.items()},
    }
    return Plan(recipe.name, recipe.about, seed, chosen, tuple(_ordered(plans)), resolved)


def _choose_budget(recipe: Recipe, budget: str | None) -> str:
    if budget is None:
        return next(iter(recipe.budgets), "")
    if budget not in recipe.budgets:
        raise ConfigError(f"recipe {recipe.name} has no budget {budget!r}", fix=f"It has: {', '.join(recipe.budgets) or 'none'}.")
    return budget


def _check_stage(name: str, stages: Mapping[str, Any], source: str) -> None:
    if name not in stages:
        raise ConfigError(f"{source}: no stage {name!r} in the recipe", fix=nearest(name, stages))


def _plan_stage(name: str, stage: Mapping[str, Any], stages: Mapping[str, Any], path: Path) -> StagePlan:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{path}: stage name {name!r}", expected="letters, digits, _ and -")
    values = dict(stage)
    verb = values.pop("do", None)
    if verb is None:
        raise ConfigError(f"{path}: stage {name!r} has no verb", fix=f"Add do: one of {', '.join(VERBS)}.")
    if verb not in VERBS:
        raise ConfigError(f"{path}: stage {name!r} does an unknown verb {verb!r}", fix=nearest(str(verb), VERBS))
    config_class = load_config_class(verb)
    config = load(config_class, values, f"stage {name}")
    needed = [value for _, value in input_values(config) if value in stages]
    return StagePlan(name, verb, config, tuple(dict.fromkeys(needed)))


def input_values(config: Config) -> list[tuple[str, str]]:
    """Every (field, path or stage name) that a config's `Input` fields hold, and those of its sections, as `section.field`."""
    own = [(name, value) for name in sorted(input_fields(type(config))) for value in _strings(getattr(config, name))]
    return own + [(f"{name}.{field}", value) for name, section in sections(config) for field, value in input_values(section)]


def sections(config: Config) -> list[tuple[str, Config]]:
    """The sections of a config by name; those of a list or a mapping by name and place, as `section.0`."""
    found: list[tuple[str, Config]] = []
    for name, value in config:
        places = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        found += [(name, value)] if isinstance(value, Config) else []
        found += [(f"{name}.{place}", item) for place, item in places if isinstance(item, Config)]
    return found


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _strings(item)]
    return []


def _ordered(plans: Mapping[str, StagePlan]) -> list[StagePlan]:
    """Stages so that each follows its inputs, otherwise in the file's order. Raises ConfigError on a cycle."""
    done: dict[str, StagePlan] = {}
    while len(done) < len(plans):
        ready = [item for name, item in plans.items() if name not in done and all(i in done for i in item.inputs)]
        if not ready:
            rest = ", ".join(name for name in plans if name not in done)
            raise ConfigError(f"stages wait for each other: {rest}", fix="Break the circle of inputs.")
        done[ready[0].name] = ready[0]
    return list(done.values())
