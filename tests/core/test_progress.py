"""What is shown while work goes on: every time says whether it is behind or ahead."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from luyen.core import progress


def test_a_plain_line_says_that_its_seconds_are_behind(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Plain().task("training", 200, "steps") as task:
        task.advance(120)
        task.note("loss 2.100")
    assert re.fullmatch(r"  training: 120/200 steps, \d+ s elapsed  loss 2\.100\n", capsys.readouterr().out)


def test_a_bar_says_which_time_is_behind_and_which_is_ahead() -> None:
    display, seen = progress.Terminal(), io.StringIO()
    display.console = Console(file=seen, force_terminal=True, width=120, highlight=False)
    with display.task("training", 200, "steps") as task:
        task.advance(120)
        task.note("loss 2.100")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue())
    assert re.search(r"120/200 steps \d:\d\d:\d\d elapsed, [-\d]:[-\d]{2}:[-\d]{2} left loss 2\.100", shown), shown
