"""A profile of a few steps, when it is asked for: torch.profiler's trace and a table of its operators.

`profile/steps-A-B.json.gz` opens in https://ui.perfetto.dev and chrome://tracing; `profile/steps-A-B.txt` lists the operators by their own
time. A and B are the steps that were seen, fewer than were asked for where the run ends among them or goes on after some of them; a line
says so. Profiled steps are slower, and evaluations and saves between them are in the trace. The weights are the same with and without.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from luyen.core import progress
from luyen.core.storage import replacing, storage_errors

FOLDER = "profile"
ROWS = 60
"""Operators in the table."""


class Profile:
    """Profiles the steps from `first` to `last`, or those of them that this part of the run does."""

    def __init__(self, first: int, last: int, folder: Path, device: torch.device, done: int) -> None:
        """`done` steps lie behind a run that goes on; where all of the wanted ones do, that is said unless a profile of some is there."""
        self.first, self.last, self.device = first, last, device
        self.folder = folder / FOLDER
        self._running: profile | None = None
        self._begun: tuple[int, int] | None = None
        """First and last step that is in the trace."""
        self._done = done
        self._told = done >= last
        if self._told and not self._there():
            progress.say(f"no profile of steps {first} to {last}: they were done before it was asked for")

    def before(self, step: int) -> None:
        """Begin where `step` is wanted."""
        if not self.first <= step <= self.last:
            return
        if self._running is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            self._running = profile(activities=activities, acc_events=True)
            self._running.start()
        self._begun = (self._begun or (step, step))[0], step

    def after(self, step: int) -> None:
        """Write what there is after the last wanted step."""
        self._done = step
        if self._running is not None and step >= self.last:
            self.close()

    def close(self) -> None:
        """Write what there is, also when the run ends early; where nothing was traced, say so."""
        running, self._running = self._running, None
        if running is not None and self._begun is not None:
            running.stop()
            self._write(running, *self._begun)
        elif not self._told:
            progress.say(f"no profile of steps {self.first} to {self.last}: the run ended after step {self._done}")
        self._told = True

    def _write(self, running: profile, first: int, last: int) -> None:
        path = self.folder / f"steps-{first}-{last}.json.gz"
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=80)
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path.with_suffix("").with_suffix(".txt")) as temporary:
                temporary.write_text(table, encoding="utf-8")
            with replacing(path) as temporary:
                running.export_chrome_trace(str(temporary))
        progress.say(f"profile of {steps(first, last)}{self._missing(first, last)}: {path}")

    def _missing(self, first: int, last: int) -> str:
        """Which of the wanted steps the trace does not hold, and why."""
        told = []
        if self.first < first:
            told.append(f"{steps(self.first, first - 1)} {'was' if self.first == first - 1 else 'were'} done before")
        if self._done < last:
            told.append(f"the run ended in step {last}")
        elif last < self.last:
            told.append(f"the run ended after step {last}")
        return f" of the wanted {self.first} to {self.last}, {' and '.join(told)}" if told else ""

    def _there(self) -> bool:
        """Whether a profile of some of the wanted steps is there."""
        found = (re.fullmatch(r"steps-(\d+)-(\d+)\.json\.gz", path.name) for path in self.folder.glob("steps-*"))
        return any(name and int(name[1]) <= self.last and int(name[2]) >= self.first for name in found)


def steps(first: int, last: int) -> str:
    """Steps in words."""
    return f"step {first}" if first == last else f"steps {first} to {last}"
