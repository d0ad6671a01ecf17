"""`luyen run RECIPE`: all stages of a recipe, then the report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from luyen.cli.arguments import allow_option, one_word, plain_command, program, runs_folder, split_words, torchrun, warn, working
from luyen.cli.unfinished import told_on_stop
from luyen.core import distributed, progress
from luyen.core.errors import Interrupted, LuyenError, NonFinite
from luyen.recipe.graph import Plan, find_recipe, plan
from luyen.recipe.inputs import check_inputs

HELP = """Run a recipe: stages that are up to date are skipped, an interrupted one continues, and a report is written.

Settings are stage.key=value and go over the recipe's, for example

  luyen run quickstart base.train.steps=200 seed=1

The same command again continues a stopped run and ends in the same bits. Exit codes: 0 done, 2 wrong input,
3 damaged file or full disk, 4 a loss that is not finite, 130 and 143 stopped by Ctrl-C or SIGTERM (continue with the same command)."""


def command(name: str) -> click.Command:
    """The command `run`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, required=True, metavar="RECIPE [STAGE.KEY=VALUE]..."),
        click.Option(["--budget"], metavar="NAME", help="Size from the recipe's table, for example 5m, 1h, 8h."),
        click.Option(["--out"], metavar="FOLDER", help="Run folder. Default: runs/NAME."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, print the estimate, do nothing."),
        allow_option(),
    ]
    return plain_command(name, _run, HELP, params)


def _run(words: tuple[str, ...], budget: str | None, out: str | None, dry_run: bool) -> None:
    plain, overrides = split_words(words)
    made = plan(find_recipe(one_word(plain, "recipe")), overrides, budget)
    with working():
        folder = Path(out) if out else runs_folder() / made.name
        _run_plan(made, folder, dry_run)


def _run_plan(made: Plan, folder: Path, dry_run: bool) -> None:
    from luyen.recipe.run import run

    if not distributed.is_main():
        run(made, folder)
        return
    title = f"{made.name}{f', budget {made.budget}' if made.budget else ''}"
    progress.say(f"{title}: {made.about}" if made.about else title)
    check_inputs(made, folder)
    expected = foretell(made, folder, dry_run)
    if dry_run:
        if not expected:
            progress.say("everything is up to date, nothing to do")
        return
    try:
        with told_on_stop(folder):
            run(made, folder, expected)
    except (Interrupted, KeyboardInterrupt, NonFinite):
        _report(folder)  # also of a run that stopped
        raise
    page = _report(folder)
    progress.say(f"report: {page}")
    progress.say(f"talk to it: {program()} chat" + (f" {shlex.quote(str(folder))}" if out_is_unusual(folder) else ""))


def foretell(made: Plan, folder: Path, dry_run: bool = False) -> dict[str, Any]:
    """Say what the stages that are not up to date will take, and return it for their manifests.

    Raises ConfigError for one that this machine, or its layout the processes or the model, cannot train, before any of them is begun.
    In a dry run it says how many processes a stage needs where they were not started.
    """
    from luyen.engine.parallel.mesh import Shape
    from luyen.engine.trainer import check
    from luyen.recipe.estimate import Outlook, lines, predict
    from luyen.recipe.planning import training_model
    from luyen.recipe.run import standing

    done, steps = standing(made, folder)
    outlook = Outlook({stage.name: stage for stage in made.stages}, done)
    for stage in made.stages:
        config: Any = stage.config
        if stage.name not in done and hasattr(config, "train"):
            least = Shape.least(config.train.parallel) if dry_run and distributed.ranks() == 1 else None
            check(config.train, training_model(config, outlook), least)
            if least and least > 1:
                progress.say(f"{stage.name} needs {least} processes; start it by: {torchrun({'processes': least})}")
    expected = predict(made, done, steps)
    for line in lines(expected, tuple(done)):
        progress.say(line)
    return {name: item.as_dict() for name, item in expected.items()}


def out_is_unusual(folder: Path) -> bool:
    """Whether `luyen chat` needs to be told the folder."""
    return folder.parent != Path("runs")


def _report(folder: Path) -> Path | None:
    """Write the report; its own failure is told and must not hide the run's."""
    from luyen.report.page import write

    try:
        return write(folder)
    except LuyenError as error:
        warn(f"no report: {error}")
        return None
