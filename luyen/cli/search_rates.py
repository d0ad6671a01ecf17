"""`luyen search RECIPE --rate-finder`: the learning rate of one training stage by a short training in which it rises."""

from __future__ import annotations

from pathlib import Path

from luyen.cli.arguments import runs_folder, warn, working
from luyen.cli.plan_text import duration
from luyen.cli.unfinished import told_on_stop
from luyen.core import progress
from luyen.core.errors import LuyenError, UserError
from luyen.recipe.search_space import Space


def find_rate(space: Space, steps: int, out: str | None, dry_run: bool) -> None:
    """Say what it takes, do the test, say which rate to take; the setting comes last, to be pasted."""
    from luyen.recipe.rates import try_rates
    from luyen.recipe.search import SHARED

    with working():
        folder = Path(out) if out else runs_folder() / f"{space.plan({}).name}-rates"
        _foretell(space, steps, folder)
        if dry_run:
            return
        with told_on_stop(folder / SHARED):
            found = try_rates(space, steps, folder)
        progress.say(found["verdict"])
        for remark in found["remarks"]:
            progress.say(remark)
        progress.say(f"report: {_page(folder)}")
    if found["settings"] is None:
        raise UserError(found["verdict"], fix=found["remarks"][-1])
    print(found["settings"])


def _page(folder: Path) -> Path | None:
    """Write the page; its own failure is told and must not hide the result."""
    from luyen.report.rates import write

    try:
        return write(folder)
    except LuyenError as error:
        warn(f"no page: {error}")
        return None


def _foretell(space: Space, steps: int, folder: Path) -> None:
    """Say how long the test takes and the stages before it that are still to do, as far as that is known."""
    from luyen.recipe.estimate import predict
    from luyen.recipe.run import up_to_date
    from luyen.recipe.search import SHARED, needed, training

    made = space.plan({})
    before = needed(made, space.stage)
    done = up_to_date(before, folder / SHARED)
    whole = predict(made, done)
    seconds, share = whole[space.stage].seconds, steps / training(made, space.stage).steps
    others = [whole[item.name].seconds for item in before.stages if item.name not in done]
    test = f"{duration(seconds * share)} for {steps} steps of {space.stage}" if seconds is not None else "how long it takes is not known"
    known = [other for other in others if other is not None]
    rest = f", {duration(sum(known))} for the stages before it" if known else ""
    rest += f", and {len(others) - len(known)} of them whose time is not known" if len(known) < len(others) else ""
    progress.say(f"estimate: {test}{rest}")
