"""The page of a search: best settings, best so far, parallel coordinates, importance of each key, all trials."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from luyen.core.storage import read_object, write_atomic
from luyen.report.curves import FIRST, RULE, SECOND, SETTINGS, SOFT, Line, draw, embed
from luyen.report.page import TEMPLATES, UNSAFE, environment

PAGE = "search.html"


def write(folder: Path) -> Path:
    """Write FOLDER/search.html from FOLDER/search.json and return its path. The file of a search that was stopped will do."""
    path = Path(folder) / PAGE
    write_atomic(path, render(read_object(Path(folder) / "search.json")))
    return path


def render(found: Mapping[str, Any]) -> str:
    """The page's HTML."""
    complete = [trial for trial in found["trials"] if trial["state"] == "complete"]
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704 (a file of this package)
    page = environment().get_template("search.html.jinja").render(
        found=found, complete=len(complete), style=style, progress=_progress(found, complete),
        parallel=_parallel(found, complete) if len(complete) > 1 else "",
    )  # fmt: skip
    return UNSAFE.sub("\ufffd", page)


def _progress(found: Mapping[str, Any], complete: list[dict[str, Any]]) -> Markup:
    """The best so far over the trials."""
    better = min if found["direction"] == "minimize" else max
    values = [trial["value"] for trial in complete]
    numbers = [trial["number"] + 1 for trial in complete]
    so_far = [better(values[: place + 1]) for place in range(len(values))]
    lines = [Line(numbers, values, "trial", SECOND, faint=True, dots=True), Line(numbers, so_far, "best so far")]
    return draw(lines, name="progress", x_label="trial", y_label="figure")


def _parallel(found: Mapping[str, Any], complete: list[dict[str, Any]]) -> Markup:
    """One axis for each key, in the order of the table beside it, and the figure last; the best trial stands out."""
    axes_of = [*found["space"], None]
    columns = [_heights(item, complete) for item in axes_of]
    best = found["best"]["number"]
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(max(3.8, 1.1 * len(columns)), 2.6))
        axes = figure.add_axes((0.04, 0.15, 0.92, 0.8))
        for place in range(len(columns)):
            axes.axvline(place, color=RULE, linewidth=1)
        for row, trial in enumerate(complete):
            own = trial["number"] == best
            axes.plot(range(len(columns)), [column[row] for column in columns], color=FIRST if own else SECOND,
                      linewidth=2.2 if own else 0.8, alpha=1.0 if own else 0.5, zorder=3 if own else 2)  # fmt: skip
        axes.set_xticks(range(len(columns)), [*map(str, range(1, len(columns))), "figure"], color=SOFT)
        axes.set_yticks([])
        axes.set_frame_on(False)
        axes.tick_params(length=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(embed(buffer.getvalue(), "parallel"))  # noqa: S704 (our own drawing, which holds no foreign text)


def _heights(item: Mapping[str, Any] | None, complete: list[dict[str, Any]]) -> list[float]:
    """Where each trial crosses an axis, from 0 to 1."""
    if item is None:
        values = [trial["value"] for trial in complete]
        low, high = min(values), max(values)
    elif "choices" in item:
        values = [item["choices"].index(trial["params"][item["key"]]) for trial in complete]
        low, high = 0, len(item["choices"]) - 1
    else:
        scale = math.log if item["log"] else float
        values = [scale(trial["params"][item["key"]]) for trial in complete]
        low, high = scale(item["low"]), scale(item["high"])
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]
