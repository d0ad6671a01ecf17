"""The page of a search: best settings, best so far, parallel coordinates, importance of each key, all trials."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from luyen.core.storage import read_object, write_atomic
from luyen.report.blocks import Cell, Charts, Code, Note, Section, Table
from luyen.report.curves import FIRST, RULE, SECOND, SETTINGS, SOFT, Line, draw, embed
from luyen.report.page import TEMPLATES, UNSAFE, environment
from luyen.report.wording import counted, short

PAGE = "search.html"
FAR = 3
"""Trials that are so many times as far from the best as the median are not drawn in the curve: one of them would flatten it."""
TONES = {"complete": "", "pruned": "soft", "failed": "bad"}


def write(folder: Path) -> Path:
    """Write FOLDER/search.html from FOLDER/search.json and return its path. The file of a search that was stopped will do."""
    path = Path(folder) / PAGE
    write_atomic(path, render(read_object(Path(folder) / "search.json")))
    return path


def render(found: Mapping[str, Any]) -> str:
    """The page's HTML."""
    best, name = found["best"], f"{found['recipe']}, {found['stage']}"
    headline = "No trial is complete"
    if best:
        headline = f"{found['metric']} {best['value']:.4f} in trial {best['number'] + 1} of {len(found['trials'])}"
    return page("search", name, headline, [_best(found), _course(found), _coordinates(found), _importance(found), _trials(found)])


def page(kind: str, name: str, headline: str, sections: Sequence[Section]) -> str:
    """A page that stands alone: what it is of, its result in a line, its sections."""
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704 (a file of this package)
    template = environment().get_template("search.html.jinja")
    return UNSAFE.sub("\ufffd", template.render(kind=kind, name=name, headline=headline, style=style, sections=sections))


def _complete(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [trial for trial in found["trials"] if trial["state"] == "complete"]


def _best(found: Mapping[str, Any]) -> Section:
    section = Section("best", "Best settings", "To be pasted behind the recipe's name, and what to know before believing them.")
    if found["best"]:
        section.blocks.append(Code("luyen run RECIPE, then", found["best"]["settings"]))
    section.blocks.extend(Note(remark) for remark in found["remarks"])
    return section


def _course(found: Mapping[str, Any]) -> Section:
    """The best so far over the trials."""
    section = Section("course", "Best so far", "Whether more trials are likely to help: a curve that is still falling has not ended.")
    complete = _complete(found)
    if not complete:
        section.blocks.append(Note("No trial is complete.", "bad"))
        return section
    better = min if found["direction"] == "minimize" else max
    values = [trial["value"] for trial in complete]
    numbers = [trial["number"] + 1 for trial in complete]
    so_far = [better(values[: place + 1]) for place in range(len(values))]
    limit = FAR * abs(median(values) - so_far[-1])
    near = [place for place, value in enumerate(values) if abs(value - so_far[-1]) <= limit or not limit]
    shown = Line([numbers[place] for place in near], [values[place] for place in near], "trial", SECOND, faint=True, dots=True)
    lines = [shown, Line([numbers[place] for place in near], [so_far[place] for place in near], "best so far")]
    drawing = draw(lines, name="course", x_label="trial", y_label="figure")
    said = f"From {values[0]:.4f} in trial {numbers[0]} to {so_far[-1]:.4f}."
    far = counted(len(values) - len(near), "trial far worse than the median is", "trials far worse than the median are")
    said += f" {far} not drawn." if len(near) < len(values) else ""
    section.blocks.append(Charts([(drawing, f"{found['metric']} of the complete trials, and the best so far.", said)]))
    return section


def _coordinates(found: Mapping[str, Any]) -> Section:
    """One axis for each key, in the order of the table below, and the figure last; the best trial stands out."""
    section = Section("coordinates", "Parallel coordinates", "Where good and bad trials lie: each line is a trial, each axis a key.")
    complete = _complete(found)
    if len(complete) < 2:
        section.blocks.append(Note("Two complete trials are needed to draw them."))
        return section
    said = f"{len(complete)} complete trials; the strong line is trial {found['best']['number'] + 1}, the best."
    pruned = sum(trial["state"] == "pruned" for trial in found["trials"])
    dotted = counted(pruned, "dotted line without a figure was", "dotted lines without a figure were")
    said += f" {dotted} pruned." if pruned else ""
    section.blocks.append(Charts([(_parallel(found, complete), "Upwards is more on every axis.", said)]))
    rows = []
    for place, item in enumerate(found["space"], 1):
        ends = [str(value) for value in item["choices"]] if "choices" in item else [short(item["low"]), short(item["high"])]
        scale = "choice" if "choices" in item else "logarithmic" if item["log"] else "linear"
        rows.append([str(place), item["key"], ends[0], ", ".join(ends[1:-1]) or "–", ends[-1], scale])
    figures = [trial["value"] for trial in complete]
    rows.append(["figure", found["metric"], f"{min(figures):.4f}", "–", f"{max(figures):.4f}", "by order"])
    section.blocks.append(Table("The axes", ["Axis", "Key", "Bottom", "Between", "Top", "Scale"], rows))
    return section


def _parallel(found: Mapping[str, Any], complete: Sequence[dict[str, Any]]) -> Markup:
    columns = len(found["space"]) + 1
    best = found["best"]["number"]
    order = sorted({trial["value"] for trial in complete})  # by place, for one diverged trial would press all others together
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(max(3.8, 1.1 * columns), 2.6))
        axes = figure.add_axes((0.04, 0.15, 0.92, 0.8))
        for place in range(columns):
            axes.axvline(place, color=RULE, linewidth=1)
        for trial in found["trials"]:
            if trial["state"] not in ("complete", "pruned"):
                continue
            heights = [_height(item, trial["params"][item["key"]]) for item in found["space"]]
            if trial["state"] == "pruned":
                axes.plot(range(columns - 1), heights, color=SOFT, linewidth=0.8, alpha=0.5, linestyle=(0, (1, 2)))
                continue
            heights.append(_share(order.index(trial["value"]), 0, len(order) - 1))
            own = trial["number"] == best
            axes.plot(range(columns), heights, color=FIRST if own else SECOND, linewidth=2.2 if own else 0.8,
                      alpha=1.0 if own else 0.5, zorder=3 if own else 2)  # fmt: skip
        axes.set_xticks(range(columns), [*map(str, range(1, columns)), "figure"], color=SOFT)
        axes.set_yticks([])
        axes.set_frame_on(False)
        axes.tick_params(length=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(embed(buffer.getvalue(), "parallel"))  # noqa: S704 (our own drawing, which holds no foreign text)


def _height(item: Mapping[str, Any], value: Any) -> float:
    """Where a trial crosses a key's axis, from 0 to 1."""
    if "choices" in item:
        return _share(item["choices"].index(value), 0, len(item["choices"]) - 1)
    scale = math.log if item["log"] else float
    return _share(scale(value), scale(item["low"]), scale(item["high"]))


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _importance(found: Mapping[str, Any]) -> Section:
    section = Section("importance", "Importance", "Which keys decide whether a trial is among the best; the others can be left alone.")
    if not found["importance"]:
        section.blocks.append(Note("Too few complete trials to say; ten are needed."))
        return section
    rows = [[key, Cell(f"{100 * share:.0f} %", share=share)] for key, share in found["importance"].items()]
    caption = f"By PED-ANOVA from {len(_complete(found))} complete trials; pruned ones, where the search looked less, do not count"
    section.blocks.append(Table(caption, ["Key", "Share"], rows, numeric=(1,)))
    return section


def _trials(found: Mapping[str, Any]) -> Section:
    section = Section("trials", "Trials", "Every trial in its order, with what came of it.")
    keys = [item["key"] for item in found["space"]]
    rows = []
    for trial in found["trials"]:
        figure = "–" if trial["value"] is None else f"{trial['value']:.4f}"
        note = trial["reason"] or ("the recipe's own settings" if trial["own"] else "")
        state = Cell(trial["state"], note=note, tone=TONES.get(trial["state"], "soft"))
        rows.append([str(trial["number"] + 1), state, figure, *(str(trial["params"][key]) for key in keys)])
    section.blocks.append(Table("Trials", ["Trial", "State", "Figure", *keys], rows, numeric=(2,)))
    return section
