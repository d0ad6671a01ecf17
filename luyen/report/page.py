"""`report.html`: the whole run on one page that needs no network, no script and under 2 MB.

Everything that came from pages, models, recipes and file names is text to the template and escaped by it; the only
markup that passes is our own drawings and style sheet. A content security policy refuses scripts and loading besides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from luyen.core.storage import write_atomic
from luyen.report import (
    alignment_changes,
    alignment_policies,
    alignment_rewards,
    answers,
    data_sections,
    model_sections,
    next_steps,
    run_sections,
    ways_to_tune,
)
from luyen.report.blocks import Limits, Section
from luyen.report.headline import headline
from luyen.report.model_card import model_card
from luyen.report.reading import Run, open_run
from luyen.report.wording import moment

PAGE, CARD = "report.html", "README.md"
MOST_BYTES = 1_900_000
TEMPLATES = Path(__file__).parent / "templates"

SECTIONS: tuple[Callable[[Run, Limits], Section], ...] = (
    run_sections.stages,
    ways_to_tune.ways_to_tune,
    alignment_changes.alignment_changed,
    answers.evaluation,
    model_sections.samples,
    data_sections.corpus,
    data_sections.tokenizer,
    data_sections.questions,
    alignment_rewards.reward_models,
    alignment_policies.policies,
    model_sections.training,
    run_sections.recipe,
    next_steps.next_steps,
)
"""The page from top to bottom: first what came out, then how."""

UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that HTML does not allow in text, and halves of surrogate pairs, which UTF-8 does not."""


def write(run: Path) -> Path:
    """Write RUN/report.html and RUN/README.md (the model card) and return the page's path.

    Works on unfinished and damaged runs and says what is missing. Raises DataError when `run` is no run folder and
    StorageError when it cannot be written.
    """
    opened = open_run(Path(run))
    path = Path(run) / PAGE
    write_atomic(path, render(opened))
    write_atomic(Path(run) / CARD, UNSAFE.sub("\ufffd", model_card(opened)))
    return path


def render(run: Run) -> str:
    """The page's HTML; with smaller examples until it is under the limit."""
    limits = Limits()
    while True:
        page = _render(run, limits)
        if len(page.encode()) <= MOST_BYTES or limits == limits.reduced():
            return page
        limits = limits.reduced()


def _render(run: Run, limits: Limits) -> str:
    told = len(run.problems)
    sections = [section for build in SECTIONS if (section := build(run, limits)).blocks]
    top = headline(run)
    problems = list(dict.fromkeys(run.problems))
    del run.problems[told:]  # a second rendering reads the same files again
    times = [shown for event in run.events if (shown := moment(event.get("time")))]
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704 (a file of this package)
    page = environment().get_template("report.html.jinja").render(
        run=run, headline=top, sections=sections, problems=problems[: limits.rows], style=style, finished=times[-1] if times else "",
    )  # fmt: skip
    return UNSAFE.sub("\ufffd", page)


def environment() -> Environment:
    """The template engine: escaping always on, unknown names are errors, no access to internals."""
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
