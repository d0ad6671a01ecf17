"""What more answers bring: the maximum and the median of the reward against their number (Llama 2, arXiv:2307.09288, figure 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from luyen.core.storage import storage_errors


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """The rows of `tasks.best_of.curve` as an SVG file: what is between the lines is what rejection sampling can gain."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "luyen"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        x = [row["answers"] for row in rows]
        for name in ("max", "median"):
            axes.plot(x, [row[name] for row in rows], marker="." if len(x) < 30 else "", label=f"{name} of the answers")
        axes.fill_between(x, [row["median"] for row in rows], [row["max"] for row in rows], alpha=0.15)
        axes.set_xlabel("answers to a prompt")
        axes.set_ylabel("reward, mean over the prompts")
        axes.legend()
        with storage_errors(path):
            figure.savefig(path, format="svg", metadata={"Date": None})
