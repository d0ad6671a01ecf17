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


def drawn(width: int, name: str, done: int, total: int | None, note: str) -> str:
    """The last line that a terminal of this width shows of a task."""
    display, seen = progress.Terminal(), io.StringIO()
    display.console = Console(file=seen, force_terminal=True, width=width, highlight=False)
    with display.task(name, total, "steps") as task:
        task.advance(done)
        task.note(note)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert all(len(line) <= width for line in lines), lines
    return lines[-1].rstrip()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_bar_says_which_time_is_behind_and_which_is_ahead(width: int) -> None:
    line = drawn(width, "training", 120, 200, "loss 2.100, 12,345 tokens/s")
    assert re.fullmatch(r"  training [━╸╺]{4,20} +120/200 steps \d:\d\d gone, [-\d]:[-\d]{2} left loss 2\.100, 12,345 tokens/s", line), line


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("total", [123_456, None])
def test_no_figure_is_cut(width: int, total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long run with a long name and a long note the bar gives way, then the note."""
    monkeypatch.setattr(progress, "_clock", lambda seconds: "123:45:06")
    line = drawn(width, "reading for the vocabulary", 65_432, total, "loss 2.100, 12,345 tokens a second")
    assert f" 65432/{total or '?'} steps 123:45:06 gone, 123:45:06 left" in line, line


def test_times_are_short() -> None:
    assert [progress._clock(seconds) for seconds in (0.4, 42, 725, 3725, 360_000, None)] == [
        "0:00", "0:42", "12:05", "1:02:05", "100:00:00", "-:--",
    ]  # fmt: skip
