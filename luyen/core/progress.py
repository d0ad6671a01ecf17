"""What a person sees while work goes on: bars on a terminal, plain lines in a log file, nothing in tests.

Rooms call `task` and `say`; the command chooses the display with `use`. Plain lines never hold a carriage return.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from luyen.core import distributed

PLAIN_INTERVAL_SECONDS = 10.0


class Task(Protocol):
    """A piece of work under way."""

    def advance(self, amount: float = 1.0) -> None:
        """Count `amount` units as done."""

    def note(self, text: str) -> None:
        """Show a short text beside the bar, for example the loss."""


class Display(Protocol):
    """Somewhere to show progress."""

    def task(self, name: str, total: float | None, unit: str) -> contextlib.AbstractContextManager[Task]:
        """Show a piece of work while the block runs; `total` None when it is not known."""

    def say(self, text: str) -> None:
        """Show one line."""


class _Silent:
    """Shows nothing; also the task of a display that shows nothing."""

    def advance(self, amount: float = 1.0) -> None: ...

    def note(self, text: str) -> None: ...

    @contextlib.contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator[Task]:
        yield self

    def say(self, text: str) -> None: ...


class _PlainTask:
    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.text = 0.0, ""
        self.started = self.printed = time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount
        if time.monotonic() - self.printed >= PLAIN_INTERVAL_SECONDS:
            self.print_line()

    def note(self, text: str) -> None:
        self.text = text

    def print_line(self) -> None:
        self.printed = time.monotonic()
        of = f"/{self.total:,.0f}" if self.total else ""
        note = f"  {self.text}" if self.text else ""
        print(f"  {self.name}: {self.done:,.0f}{of} {self.unit}, {self.printed - self.started:.0f} s elapsed{note}", flush=True)


class Plain:
    """One line at most every ten seconds and one at the end of each task."""

    @contextlib.contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator[Task]:
        """Lines about a piece of work."""
        task = _PlainTask(name, total, unit)
        yield task
        task.print_line()

    def say(self, text: str) -> None:
        """Print one line at once."""
        print(text, flush=True)


class _RichTask:
    def __init__(self, bar: Any, identifier: Any) -> None:
        self.bar, self.identifier = bar, identifier

    def advance(self, amount: float = 1.0) -> None:
        self.bar.advance(self.identifier, amount)

    def note(self, text: str) -> None:
        self.bar.update(self.identifier, note=text)


BAR_WIDTH, LEAST_BAR = 20, 4
"""Columns of a bar, and those below which there is none."""


def _clock(seconds: float | None) -> str:
    """0:42, 12:05, 1:02:05; -:-- for what is not known."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _row(task: Any, unit: str, width: int) -> Any:
    """A task's name, bar, figures and note within `width` columns: the bar gives way first, then note and name, never a figure."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total = "?" if task.total is None else f"{task.total:.0f}"
    counted = f"{task.completed:.0f}/{total}{f' {unit}' if unit else ''}"
    gone, left = f"{_clock(task.elapsed or 0.0)} gone,", f"{_clock(task.time_remaining)} left"
    figures = Text.assemble((counted, "progress.download"), " ", (gone, "progress.elapsed"), " ", (left, "progress.remaining"))
    note = Text(task.fields["note"])
    room = width - figures.cell_len - 1
    name = Text(f"  {task.description}")
    name.truncate(max(1, room), overflow="ellipsis")
    note.truncate(max(0, room - name.cell_len - 1), overflow="ellipsis")
    bar = min(BAR_WIDTH, room - name.cell_len - 1 - (note.cell_len + 1 if note else 0))
    cells: list[Any] = [name, figures]
    if bar >= LEAST_BAR:
        pulse = not task.started or task.total is None
        cells.insert(1, ProgressBar(total=task.total, completed=task.completed, width=bar, pulse=pulse, animation_time=task.get_time()))
    cells += [note] if note else []
    grid = Table.grid(padding=(0, 1), pad_edge=False)
    for _ in cells:
        grid.add_column(no_wrap=True)
    grid.add_row(*cells)
    return grid


class Terminal:
    """Bars drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)

    @contextlib.contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator[Task]:
        """A bar for a piece of work."""
        from rich.progress import Progress, ProgressColumn
        from rich.progress import Task as Shown

        console = self.console

        class Row(ProgressColumn):
            def render(self, task: Shown) -> Any:
                return _row(task, unit, console.width)

        with Progress(Row(), console=console, refresh_per_second=4) as bar:
            yield _RichTask(bar, bar.add_task(name, total=total, note=""))

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False, soft_wrap=True)


_display: Display = _Silent()


def use(display: Display) -> None:
    """Choose the display for this process."""
    global _display
    _display = display


def automatic() -> Display:
    """Bars when stdout is a terminal, plain lines elsewhere; of several processes of a run only the main one speaks."""
    if not distributed.is_main():
        return _Silent()
    return Terminal() if sys.stdout.isatty() else Plain()


def task(name: str, total: float | None = None, unit: str = "") -> contextlib.AbstractContextManager[Task]:
    """Show a piece of work: `with task("pages", 15, "pages") as t: t.advance()`."""
    return _display.task(name, total, unit)


def say(text: str) -> None:
    """Show one line."""
    _display.say(text)
