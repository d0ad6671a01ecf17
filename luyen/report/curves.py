"""Curves as small SVG drawings that take the page's colours, light or dark.

matplotlib draws with marker colours that no theme uses; afterwards each becomes a CSS variable of the page. Text stays text.
The same figures give the same bytes: fixed hash salt, no date. No text from outside enters a drawing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from luyen.report.wording import short

MARKERS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--rule)",
    "#040404": "var(--series-1)",
    "#050505": "var(--series-2)",
}
INK, SOFT, RULE, FIRST, SECOND = MARKERS
MOST_POINTS = 400
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "luyen", "font.family": "sans-serif", "font.size": 10.5, "path.simplify_threshold": 0.3}
WIDTH, HEIGHT = 3.8, 2.6  # inches; 72 SVG points each, so that the text is readable at a phone's width


@dataclass(frozen=True)
class Line:
    """One curve: points with rising x."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    color: str = FIRST
    faint: bool = False
    dots: bool = False


def thin(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float], int]:
    """At most `most` points, each the mean of equally many neighbours, and how many neighbours (1: nothing was averaged)."""
    width = math.ceil(len(x) / most) or 1
    if width == 1:
        return list(x), list(y), 1
    starts = range(0, len(x), width)
    return [_mean(x[i : i + width]) for i in starts], [_mean(y[i : i + width]) for i in starts], width


def smooth(y: Sequence[float], memory: float = 0.9) -> list[float]:
    """Exponential moving average, corrected at the start as in Adam (Kingma and Ba, 2015, section 3)."""
    average, weight, result = 0.0, 0.0, []
    for value in y:
        average = memory * average + (1 - memory) * value
        weight = memory * weight + (1 - memory)
        result.append(average / weight)
    return result


def draw(
    lines: Sequence[Line],
    *,
    name: str,
    x_label: str,
    y_label: str,
    level: tuple[float, str] | None = None,
    floor_zero: bool = False,
    whole_x: bool = True,
) -> Markup:
    """One chart as inline SVG.

    name: a word of ours, unique on the page, that keeps the drawing's ids apart. level: a dotted horizontal line with its text.
    whole_x: marks of the x axis are whole numbers, as steps are.
    """
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]  # the SVG writer reads these two settings only from there
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0.14, 0.19, 0.85, 0.65))  # fixed: a layout engine would draw everything several times
        for line in lines:
            axes.plot(
                line.x, line.y, color=line.color, label=line.label, linewidth=0.8 if line.faint else 1.8, alpha=0.4 if line.faint else 1.0,
                marker="o" if line.dots else None, markersize=3.5, solid_joinstyle="round",
            )  # fmt: skip
        if level is not None:
            axes.axhline(level[0], color=SOFT, linewidth=1, linestyle=(0, (1, 2.5)))
            axes.annotate(level[1], (1, level[0]), xycoords=("axes fraction", "data"), xytext=(0, -3), textcoords="offset points",
                          ha="right", va="top", color=SOFT, fontsize=9.5)  # fmt: skip
        figure.text(0, 0.99, y_label, color=INK, va="top")
        _dress(axes, x_label, whole_numbers=whole_x)
        if floor_zero:
            axes.set_ylim(bottom=0)
        if sum(bool(line.label) for line in lines) > 1:
            axes.legend(frameon=False, labelcolor=SOFT, fontsize=9.5, ncols=len(lines), loc="lower right", bbox_to_anchor=(1.01, 1),
                        borderaxespad=0, borderpad=0.3, handlelength=1.2, handletextpad=0.5, columnspacing=1)  # fmt: skip
        return _as_markup(figure, name)


@dataclass(frozen=True)
class Point:
    """A place with a number of ours beside it."""

    x: float
    y: float
    label: str


def scatter(points: Sequence[Point], *, name: str, x_label: str, y_label: str, logarithmic: bool = False) -> Markup:
    """Labelled points as inline SVG; `logarithmic` is the x axis."""
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0.14, 0.19, 0.85, 0.65))
        axes.plot([point.x for point in points], [point.y for point in points], color=FIRST, linestyle="none", marker="o", markersize=4.5)
        for point in points:
            axes.annotate(point.label, (point.x, point.y), xytext=(4, 3), textcoords="offset points", color=SOFT, fontsize=9.5)
        figure.text(0, 0.99, y_label, color=INK, va="top")
        if logarithmic:
            axes.set_xscale("log")
        _dress(axes, x_label, whole_numbers=False, logarithmic=logarithmic)
        axes.margins(x=0.08, y=0.12)
        return _as_markup(figure, name)


def _as_markup(figure: Figure, name: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(embed(buffer.getvalue(), name))  # noqa: S704 (our own drawing, which holds no foreign text)


def _dress(axes: Any, x_label: str, whole_numbers: bool = True, logarithmic: bool = False) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, length=0, pad=5)
    axes.set_xlabel(x_label, color=SOFT)
    if not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole_numbers))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(round(value, 12))))
    axes.margins(x=0.01)


def embed(svg: str, name: str) -> str:
    """The svg element alone, ids made unique, marker colours made variables, size left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">(.*?)</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for marker, variable in MARKERS.items():
        svg = svg.replace(marker, variable)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)  # the page's own letters
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false" stroke-linejoin="round" stroke-linecap="butt"', 1)
    return re.sub(r"\n\s*", "\n", svg)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
