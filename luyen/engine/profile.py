"""A profile of a few steps, when it is asked for: torch.profiler's trace and a table of its operators.

`profile/steps-A-B.json.gz` opens in https://ui.perfetto.dev and chrome://tracing; `profile/steps-A-B.txt` lists the operators by their own
time. Profiled steps are slower, and evaluations and saves between them are in the trace. The weights are the same with and without.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from luyen.core import progress
from luyen.core.storage import replacing, storage_errors

FOLDER = "profile"
ROWS = 60
"""Operators in the table."""


class Profile:
    """Profiles the steps from `first` to `last`."""

    def __init__(self, first: int, last: int, folder: Path, device: torch.device, done: int) -> None:
        """`done` steps lie behind a run that goes on; where all of the wanted ones do, that is said unless the profile is there."""
        self.first, self.last, self.device = first, last, device
        self.path = folder / FOLDER / f"steps-{first}-{last}.json.gz"
        self._running: profile | None = None
        if done >= last and not self.path.exists():
            progress.say(f"no profile of steps {first} to {last}: they were done before it was asked for")

    def before(self, step: int) -> None:
        """Begin where `step` is wanted."""
        if self._running is None and self.first <= step <= self.last:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            self._running = profile(activities=activities, acc_events=True)
            self._running.start()

    def after(self, step: int) -> None:
        """Write what there is after the last wanted step."""
        if self._running is not None and step >= self.last:
            self.close()

    def close(self) -> None:
        """Write what there is, also when the run ends early."""
        running, self._running = self._running, None
        if running is None:
            return
        running.stop()
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=80)
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path.with_suffix("").with_suffix(".txt")) as temporary:
                temporary.write_text(table, encoding="utf-8")
            with replacing(self.path) as temporary:
                running.export_chrome_trace(str(temporary))
        progress.say(f"profile of steps {self.first} to {self.last}: {self.path}")
