"""`luyen VERB key=value ...`: one stage alone, with the config of the verb as its settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

import click

from luyen.cli.arguments import allow_option, field_help, only_settings, plain_command, program, runs_folder, working
from luyen.cli.run import foretell
from luyen.cli.unfinished import told_on_stop
from luyen.core import distributed, progress
from luyen.core.config import Config, dump, load, merge, read_yaml
from luyen.core.errors import ConfigError, LuyenError
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.inputs import check_inputs
from luyen.recipe.run import run
from luyen.recipe.table import VERBS, load_config_class

NEED_TORCH = ("model", "evaluation")
"""What is made with torch: there measuring the machine for an estimate costs nothing beside importing it."""


def command(verb: str) -> click.Command:
    """The command of one verb."""
    try:
        fields = field_help(load_config_class(verb))
    except LuyenError as error:
        fields = str(error)

    def work(settings: tuple[str, ...], config: str | None, out: str | None) -> None:
        """Check the settings, then run the verb as a recipe of one stage."""
        values = merge(read_yaml(Path(config)) if config else {}, only_settings(settings))
        seed = values.get("seed") if isinstance(values.get("seed"), int) else 0
        _check_named(load_config_class(verb), values, verb)
        checked = load(load_config_class(verb), values, f"luyen {verb}")
        with working():
            folder = Path(out) if out else runs_folder() / verb
            stage = StagePlan(verb, verb, checked, ())
            resolved = {"version": 1, "name": verb, "seed": seed, "stages": {verb: {"do": verb, **dump(checked)}}}
            made = Plan(verb, VERBS[verb].help, int(seed or 0), "", (stage,), resolved)
            if not distributed.is_main():
                run(made, folder)
                return
            check_inputs(made, folder)
            expected = foretell(made, folder) if VERBS[verb].kind in NEED_TORCH else {}
            with told_on_stop(folder):
                run(made, folder, expected)
            if VERBS[verb].kind in NEED_TORCH:
                progress.say(f"its figures as a page: {program()} report {shlex.quote(str(folder))}")
        print(f"{folder / verb}")

    text = f"{VERBS[verb].help}\n\nSettings, as key=value (nested keys with dots), with their defaults:\n\n{fields}"
    params: list[click.Parameter] = [
        click.Argument(["settings"], nargs=-1, metavar="[KEY=VALUE]..."),
        click.Option(["--config"], metavar="FILE", help="YAML file with settings; the command line goes over it."),
        click.Option(["--out"], metavar="FOLDER", help=f"Run folder; the result is FOLDER/{verb}. Default: runs/{verb}."),
        *([allow_option()] if _scores(verb) else []),
    ]
    return plain_command(verb, work, text, params)


def _scores(verb: str) -> bool:
    """Whether the verb takes a reward, which may be a program."""
    try:
        return "reward" in load_config_class(verb).model_fields
    except LuyenError:
        return False  # said by the command itself


def _check_named(config_class: type[Config], values: Mapping[str, Any], verb: str) -> None:
    """ConfigError for a key that takes several values by name and was given one without, such as models=DIR."""
    for name, value in values.items():
        field = config_class.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is dict and not isinstance(value, Mapping):
            example = value if isinstance(value, str) else "..."
            raise ConfigError(f"luyen {verb}: {name}", found=repr(value), expected="a name for each", fix=f"Write {name}.NAME={example}")
