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


class Terminal:
    """Bars drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)

    @contextlib.contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator[Task]:
        """A bar for a piece of work."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("  {task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn(unit),
            TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.console, refresh_per_second=4) as bar:
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
