"""How a reward model gets better with its data and its size (Llama 2, Touvron et al., 2023, arXiv:2307.09288, section 3.2.2, figure 6).

    L(n) = a n^-b        n pairs, L the held-out ranking loss (nats); fitted as a line of log L over log n by least squares

A law without a floor: a few points cannot tell a floor from a small exponent, so it must not be trusted far beyond the last point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from luyen.core.storage import storage_errors

FEWEST = 3
"""Points that a law is fitted to at least: through two a line always goes."""


@dataclass(frozen=True)
class Point:
    """A reward model trained on some of the pairs."""

    pairs: int
    loss: float
    """On the held-out pairs."""
    accuracy: float


@dataclass(frozen=True)
class Law:
    """a n^-b."""

    a: float
    b: float
    determined: float
    """Share of the variance of log L that it explains (R squared)."""

    def loss(self, pairs: float) -> float:
        """What it expects of so many pairs."""
        return float(self.a * pairs**-self.b)


def fit_law(points: Sequence[Point]) -> Law | None:
    """The law of some points; None for fewer than three different amounts of data."""
    if len({point.pairs for point in points}) < FEWEST:
        return None
    x, y = [math.log(point.pairs) for point in points], [math.log(point.loss) for point in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True)) / sum((one - mean_x) ** 2 for one in x)
    height = mean_y - slope * mean_x
    spread = sum((other - mean_y) ** 2 for other in y)
    missed = sum((other - height - slope * one) ** 2 for one, other in zip(x, y, strict=True))
    return Law(math.exp(height), -slope, 1 - missed / spread if spread > 0 else 1.0)


def told(name: str, points: Sequence[Point]) -> str:
    """One model's points and its law in words."""
    law = fit_law(points)
    figures = ", ".join(f"{point.pairs:,} pairs {point.loss:.4f} ({point.accuracy:.1%})" for point in points)
    if law is None:
        return f"{name}: held-out loss {figures}; no law, which needs {FEWEST} amounts of data"
    better = f"twice the pairs: {2**-law.b - 1:+.1%} of the loss"
    return f"{name}: held-out loss {figures}; law {law.a:.3g} n^{-law.b:.3f}, R² {law.determined:.2f}; {better}"


def draw(found: Mapping[str, Sequence[Point]], path: Path) -> None:
    """The points and laws of every model as an SVG file, both axes logarithmic."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "luyen"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, points in found.items():
            x = [point.pairs for point in points]
            (line,) = axes.plot(x, [point.loss for point in points], linestyle="none", marker="o", label=name)
            if law := fit_law(points):
                axes.plot(x, [law.loss(pairs) for pairs in x], color=line.get_color(), linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("pairs learned from")
        axes.set_ylabel("held-out ranking loss, nats")
        axes.legend()
        with storage_errors(path):
            figure.savefig(path, format="svg", metadata={"Date": None})
