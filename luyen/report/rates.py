"""The page of a learning-rate test: which rate to take, and the loss over the rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luyen.core.storage import read_object, write_atomic
from luyen.report.blocks import Charts, Code, Note, Section, Table
from luyen.report.curves import SECOND, Line, draw
from luyen.report.search import page
from luyen.report.wording import counted

PAGE = "rates.html"
ROWS = 40
"""Steps in the table; all are in rates.json."""


def write(folder: Path) -> Path:
    """Write FOLDER/rates.html from FOLDER/rates.json and return its path."""
    path = Path(folder) / PAGE
    write_atomic(path, render(read_object(Path(folder) / "rates.json")))
    return path


def render(found: Mapping[str, Any]) -> str:
    """The page's HTML."""
    name = f"{found['recipe']}, {found['stage']}"
    headline = "No rate made the loss fall" if found["taken"] is None else f"Learning rate {found['taken']:g} for {found['optimizer']}"
    return page("learning rate", name, headline, [_answer(found), _curve(found), _steps(found)])


def _answer(found: Mapping[str, Any]) -> Section:
    section = Section("best", "Which rate", "To be pasted behind the recipe's name, and what to know before believing it.")
    if found["settings"]:
        section.blocks.append(Code("luyen run RECIPE, then", found["settings"]))
    section.blocks.extend(Note(text) for text in (found["verdict"], *found["remarks"]))
    return section


def _curve(found: Mapping[str, Any]) -> Section:
    """The loss over the logarithm of the rate; what broke is left out, since it would flatten the rest."""
    section = Section("curve", "Loss over the rate", "Where the loss falls, where it turns, and where it breaks.")
    rates, losses = found["rates"], found["losses"]
    if len(rates) < 2:
        section.blocks.append(Note("The loss broke after the first updates: there is no curve.", "bad"))
        return section
    limit = losses[0] + max(losses[0] - min(losses), 0.1 * abs(losses[0]))
    near = [place for place, loss in enumerate(losses) if loss <= limit]
    powers = [math.log10(rates[place]) for place in near]
    lines = [
        Line(powers, [losses[place] for place in near], "each step", faint=True),
        Line(powers, [found["averaged"][place] for place in near], "averaged"),
    ]
    if found["suggestion"] is not None:
        place = rates.index(found["suggestion"])
        lines.append(Line([math.log10(rates[place])], [found["averaged"][place]], "falls fastest", SECOND, dots=True))
    drawing = draw(lines, name="rates", x_label="learning rate, as a power of ten", y_label="loss")
    said = f"{len(rates)} rates from {rates[0]:.2g} to {rates[-1]:.2g}. {found['verdict']}"
    far = counted(len(losses) - len(near), "loss far above the first is", "losses far above the first are")
    said += f" {far} not drawn." if len(near) < len(losses) else ""
    section.blocks.append(Charts([(drawing, "Loss after the update with each rate.", said)]))
    return section


def _steps(found: Mapping[str, Any]) -> Section:
    section = Section("steps", "Steps", "The figures behind the curve.")
    rates = found["rates"]
    every = math.ceil(len(rates) / ROWS) or 1
    rows = [[str(place + 1), f"{rates[place]:.3g}", f"{found['losses'][place]:.4f}", f"{found['averaged'][place]:.4f}"]
            for place in range(0, len(rates), every)]  # fmt: skip
    caption = "Every step" if every == 1 else f"One step in {every}; all are in rates.json"
    section.blocks.append(Table(caption, ["Step", "Rate", "Loss after it", "Averaged"], rows, numeric=(1, 2, 3)))
    return section
