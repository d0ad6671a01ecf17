"""`luyen search RECIPE stage.key=LOW..HIGH`: find settings of one training stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from luyen.cli.arguments import KEY, allow_option, one_word, plain_command, runs_folder, warn, working
from luyen.cli.plan_text import duration
from luyen.cli.search_rates import find_rate
from luyen.cli.unfinished import told_on_stop
from luyen.core import progress
from luyen.core.errors import Interrupted, LuyenError, UserError
from luyen.recipe.graph import find_recipe
from luyen.recipe.search_space import Space, read_space
from luyen.recipe.search_study import PRUNERS, RUNNING, library

HELP = """Search for settings of one training stage, for example

  luyen search quickstart base.train.optimizer.learning_rate=1e-4..1e-2 base.batch.rows=4,8,16

LOW..HIGH is a range: linear and whole between whole numbers, else logarithmic when both ends are above 0; :log or :linear behind it says
otherwise. a,b,c is a choice. Other settings are fixed, as for luyen run. The stages before are run once. Each trial is a run of the
stage in FOLDER/trials, the first with the recipe's own settings if they are in the ranges; the same command again continues a
stopped search, more --trials a finished one. The result is FOLDER/search.json and FOLDER/search.html.

The best settings are printed last, to be pasted behind `luyen run RECIPE`.

With --rate-finder the learning rate alone is looked for, by one training of --steps updates in which it rises from LOW to HIGH:

  luyen search quickstart --rate-finder --stage base

The result is FOLDER/rates.json and FOLDER/rates.html. It begins anew each time, and needs no optuna."""


def command(name: str) -> click.Command:
    """The command `search`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, required=True, metavar="RECIPE STAGE.KEY=RANGE..."),
        click.Option(["--stage"], metavar="NAME", help="The stage whose keys are searched. Default: the one of the ranges and choices."),
        click.Option(["--rate-finder"], is_flag=True, help="No trials: one short training with a rising learning rate, and which to take."),
        click.Option(["--steps"], type=click.IntRange(min=5), default=100, show_default=True, help="Steps of --rate-finder."),
        click.Option(["--trials"], type=click.IntRange(min=1), default=20, show_default=True, help="Trials in all."),
        click.Option(["--pruner"], type=click.Choice(list(PRUNERS)), default="median", show_default=True,
                     help="What ends a trial early."),
        click.Option(["--metric"], default="heldout_bits_per_byte", show_default=True, help="Figure of the stage to look at."),
        click.Option(["--maximize"], is_flag=True, help="More of the metric is better; else less is."),
        click.Option(["--budget"], metavar="NAME", help="Size from the recipe's table."),
        click.Option(["--out"], metavar="FOLDER", help="Search folder. Default: runs/NAME-search or runs/NAME-rates."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, print the estimate, do nothing."),
        allow_option(),
    ]  # fmt: skip
    return plain_command(name, _search, HELP, params)


def _search(words: tuple[str, ...], stage: str | None, budget: str | None, out: str | None, dry_run: bool, **options: Any) -> None:
    """Check the words, say what it takes, and search, or find the learning rate."""
    _check_options("trials pruner metric maximize" if options["rate_finder"] else "steps", options["rate_finder"])
    recipe = find_recipe(one_word([word for word in words if not KEY.match(word)], "recipe"))
    settings = [word for word in words if KEY.match(word)]
    if options["rate_finder"]:
        from luyen.recipe.rates import rate_space

        find_rate(rate_space(recipe, settings, budget, stage), options["steps"], out, dry_run)
    else:
        _trials(read_space(recipe, settings, budget, stage), out, dry_run, options)


def _check_options(others: str, rate_finder: bool) -> None:
    """Refuse options that would not be read."""
    given = click.get_current_context().get_parameter_source
    for name in others.split():
        if given(name) == click.core.ParameterSource.COMMANDLINE:
            fix = "Leave one of the two out." if rate_finder else "Add --rate-finder, or set the stage's train.steps."
            raise UserError(f"--{name} {'with' if rate_finder else 'without'} --rate-finder", found="nothing that reads it", fix=fix)


def _trials(space: Space, out: str | None, dry_run: bool, options: Mapping[str, Any]) -> None:
    """Say what the search takes, search, show what came of it. optuna is asked for last: a wrong word is told without it."""
    from luyen.recipe.search import Goal, at_work, search, training

    made = space.plan({item.key: item.ends[0] for item in space.dimensions})
    training(made, space.stage)
    library()
    goal = Goal(options["trials"], options["pruner"], options["metric"], "maximize" if options["maximize"] else "minimize")
    with working():
        folder = Path(out) if out else runs_folder() / f"{made.name}-search"
        foretell(space, goal.trials, folder)
        if dry_run:
            return
        try:
            found = search(space, goal, folder)
        except (Interrupted, KeyboardInterrupt):
            _page(folder)
            with told_on_stop(at_work(folder)):
                raise
        page = _page(folder)
    for line in table(found):
        progress.say(line)
    for remark in found["remarks"]:
        progress.say(remark)
    progress.say(f"report: {page}")
    if found["best"] is None:
        why = next((trial["reason"] for trial in found["trials"] if trial["reason"]), "")
        raise UserError("no trial of the search was completed", found=why, fix="Choose other ranges and another --out.")
    print(found["best"]["settings"])


def _page(folder: Path) -> Path | None:
    """Write the page; its own failure is told and must not hide the search's."""
    from luyen.report.search import write

    if not (folder / "search.json").is_file():
        return None  # stopped before the first trial ended
    try:
        return write(folder)
    except LuyenError as error:
        warn(f"no page: {error}")
        return None


def table(found: Mapping[str, Any]) -> list[str]:
    """The trials as aligned lines, the best first; keys without what all of them begin with."""
    sign = -1 if found["direction"] == "maximize" else 1
    trials = sorted(found["trials"], key=lambda trial: (trial["value"] is None, sign * (trial["value"] or 0.0)))
    keys = [item["key"] for item in found["space"]]
    rows = [["trial", "state", "figure", *(key.rpartition(".")[2] for key in keys), ""]]
    for trial in trials:
        figure = "" if trial["value"] is None else f"{trial['value']:.4f}"
        note = trial["reason"] or ("the recipe's own settings" if trial["own"] else "")
        rows.append([str(trial["number"] + 1), trial["state"], figure, *(str(trial["params"][key]) for key in keys), note])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def foretell(space: Space, trials: int, folder: Path) -> None:
    """Say what the search takes at most: every trial that is still to do to its end, between both ends of the ranges."""
    from luyen.recipe.estimate import predict
    from luyen.recipe.run import up_to_date
    from luyen.recipe.search import SHARED, needed, read_trials, training

    made = space.plan({item.key: item.ends[0] for item in space.dimensions})
    training(made, space.stage)
    before = needed(made, space.stage)
    done = up_to_date(before, folder / SHARED)
    left = max(0, trials - sum(trial.state != RUNNING for trial in read_trials(folder)))
    shared = {name: item for name, item in predict(before, done).items() if name not in done}
    others = sum(item.seconds or 0.0 for item in shared.values())
    each = []
    for place in (0, -1):
        whole = predict(space.plan({item.key: item.ends[place] for item in space.dimensions}), done)
        each.append(whole[space.stage].seconds)
    trial = "trial" if left == 1 else "trials"
    known = sorted(seconds for seconds in each if seconds is not None)
    if not known:
        progress.say(f"{left} {trial} of {space.stage}; how long one takes is not known before")
        return
    one = " to ".join(dict.fromkeys(map(duration, known)))
    together = " to ".join(dict.fromkeys(duration(left * seconds + others) for seconds in known))
    unknown = [name for name, item in shared.items() if item.seconds is None]
    progress.say(
        f"estimate: {left} {trial} of {space.stage} of {one} each without pruning, {together} with the stages before it"
        + (f", without {', '.join(unknown)}" if unknown else "")
    )
