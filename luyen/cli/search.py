"""`luyen search RECIPE stage.key=LOW..HIGH`: find settings of one training stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from luyen.cli.arguments import KEY, one_word, plain_command, runs_folder, working
from luyen.core import progress
from luyen.recipe.graph import find_recipe
from luyen.recipe.search_space import Space, read_space

HELP = """Search for settings of one training stage, for example

  luyen search quickstart base.train.optimizer.learning_rate=1e-4..1e-2 base.batch.rows=4,8,16

LOW..HIGH is a range (whole numbers stay whole; keys with `rate` in their last word are on a logarithmic scale, or say :log or :linear
behind it), a,b,c a choice; other settings are fixed. The stages before are run once. Each trial is a run of the stage in
FOLDER/trials; the same command again continues a stopped search. The result is FOLDER/search.json and FOLDER/search.html."""


def command(name: str) -> click.Command:
    """The command `search`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, required=True, metavar="RECIPE STAGE.KEY=RANGE..."),
        click.Option(["--trials"], type=click.IntRange(min=1), default=20, show_default=True, help="Trials in all."),
        click.Option(["--pruner"], type=click.Choice(["median", "asha", "none"]), default="median", show_default=True,
                     help="What ends a trial early."),
        click.Option(["--metric"], default="heldout_bits_per_byte", show_default=True, help="Figure of the stage to look at."),
        click.Option(["--maximize"], is_flag=True, help="More of the metric is better; else less is."),
        click.Option(["--budget"], metavar="NAME", help="Size from the recipe's table."),
        click.Option(["--out"], metavar="FOLDER", help="Search folder. Default: runs/NAME-search."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, print the estimate, do nothing."),
    ]  # fmt: skip
    return plain_command(name, _search, HELP, params)


def _search(words: tuple[str, ...], budget: str | None, out: str | None, dry_run: bool, **options: Any) -> None:
    from luyen.recipe.search import Goal, library, search
    from luyen.report.search import write

    library()
    recipe = find_recipe(one_word([word for word in words if not KEY.match(word)], "recipe"))
    space = read_space(recipe, [word for word in words if KEY.match(word)], budget)
    goal = Goal(options["trials"], options["pruner"], options["metric"], "maximize" if options["maximize"] else "minimize")
    with working():
        made = space.plan({item.key: item.ends[0] for item in space.dimensions})
        folder = Path(out) if out else runs_folder() / f"{made.name}-search"
        _foretell(space, goal.trials)
        if dry_run:
            return
        found = search(space, goal, folder)
        page = write(folder)
    ordered = sorted(
        found["trials"], key=lambda trial: (trial["value"] is None, (trial["value"] or 0) * (-1 if options["maximize"] else 1))
    )
    for trial in ordered:
        value = trial["reason"] if trial["value"] is None else f"{trial['value']:.4f}"
        values = " ".join(f"{key}={shown:.4g}" if isinstance(shown, float) else f"{key}={shown}" for key, shown in trial["params"].items())
        progress.say(f"{trial['number'] + 1:4d}  {trial['state']:8s}  {value}  {values}")
    progress.say(f"report: {page}")
    print(found["best"]["settings"])


def _foretell(space: Space, trials: int) -> None:
    """Say what the search takes at most: every trial to its end, at the costliest ends of the ranges."""
    from luyen.recipe.estimate import predict

    plans = [space.plan({item.key: item.ends[place] for item in space.dimensions}) for place in (0, -1)]
    before = predict(plans[0])
    each = [predict(made)[space.stage].seconds for made in plans]
    known = [seconds for seconds in each if seconds is not None]
    if not known:
        progress.say(f"{trials} trials of {space.stage}; how long one takes is not known before")
        return
    others = sum(item.seconds or 0.0 for name, item in before.items() if name != space.stage)
    progress.say(f"estimate: {trials} trials of {space.stage} of {min(known):.0f} to {max(known):.0f} s each without pruning, "
                 f"at most {(trials * max(known) + others) / 60:.1f} min with the stages before it")  # fmt: skip
