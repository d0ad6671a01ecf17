"""Everything that looks at a run without taking part in it: times, TensorBoard's files, trackers, alarms, a profile.

Nothing here changes a weight or a random number. `Run` calls it where a step begins and ends, after an evaluation and around a save.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from luyen.core import config as configs
from luyen.core import distributed, progress
from luyen.engine import memory, timing
from luyen.engine.config import TrainConfig
from luyen.engine.divergence import Divergence
from luyen.engine.events import EventLog
from luyen.engine.logs import LineLog
from luyen.engine.profile import Profile
from luyen.engine.timing import Clock, OperationCount
from luyen.engine.trackers import Trackers

EVENTS = "tensorboard"
"""The folder with TensorBoard's files, in the stage's folder."""
TIMINGS = "timings"
"""What timings.jsonl is called in a checkpoint; beside it stands the place in the event files as `tensorboard`."""


class Watch:
    """What looks on at one call of `fit`; `alarms` is the state that a checkpoint holds."""

    def __init__(self, operations: OperationCount, config: TrainConfig, folder: Path, device: torch.device, rate: float | None) -> None:
        """`rate`: operations a second of a large product, for the MFU. Raises ConfigError when a tracker's package is missing."""
        self.config, self.folder, self.device = config.watch, folder, device
        self.rate = rate and rate * distributed.ranks()
        self.clock = Clock(device, config.watch.synchronise)
        self.operations = operations
        self.trackers = Trackers(config.watch.trackers if distributed.is_main() else [], config.watch.project, flat(config), folder)

    def open(self, step: int, lengths: Mapping[str, Any], alarms: Mapping[str, Any]) -> None:
        """Continue after `step` with the logs and alarms as a checkpoint had them; all empty for a new run."""
        self.timings = LineLog(self.folder / f"{TIMINGS}.jsonl", lengths.get(TIMINGS, 0))
        self.events = EventLog(self.folder / EVENTS, step, lengths.get(EVENTS))
        self.alarms = Divergence.of(alarms)
        steps = self.config.profiled
        self.profile = Profile(*steps, self.folder, self.device, step) if steps else None

    def begin(self, step: int) -> None:
        """A step begins."""
        if self.profile:
            self.profile.before(step)
        self.clock.start()

    def judge(self, row: Mapping[str, Any]) -> dict[str, int]:
        """Say which figures of this row jumped; `alarms`, how many, becomes part of the row when there are any."""
        sentences = self.alarms.observe(row, self.config.window, self.config.deviations)
        for sentence in sentences:
            progress.say(sentence)
        return {"alarms": len(sentences)} if sentences else {}

    def end(self, row: Mapping[str, Any], tokens: int, batches: Sequence[Any]) -> float:
        """A step ended with this row of metrics.jsonl. Returns its seconds."""
        seconds = self.clock.stop()
        if self.profile:
            self.profile.after(row["step"])
        times = timing.row(seconds, tokens, self.operations.of(batches), self.rate, memory.peak_bytes(self.device))
        self.timings.append({"step": row["step"], **times})
        self._tell(row["step"], {**scalars(row, "train"), **scalars(times, "time")})
        return seconds["seconds"]

    @contextmanager
    def apart(self, name: str, step: int) -> Iterator[None]:
        """The block is an evaluation or a save after `step`: its seconds become a row of timings.jsonl of their own."""
        started = time.perf_counter()
        yield
        self.told(name, step, time.perf_counter() - started)

    def told(self, name: str, step: int, seconds: float) -> None:
        """Something apart from the steps took so long: a row of timings.jsonl."""
        seconds = round(seconds, 6)
        self.timings.append({"step": step, name: seconds})
        self._tell(step, {f"time/{name}": seconds})

    def evaluated(self, step: int, measured: Mapping[str, float]) -> None:
        """An evaluation gave these figures."""
        self._tell(step, scalars({"step": step, **measured}, "evaluation"))

    def state(self) -> dict[str, Any]:
        """The alarms, for the deterministic part of a checkpoint."""
        return dataclasses.asdict(self.alarms)

    def lengths(self) -> dict[str, Any]:
        """How far the logs that hold times go, for a checkpoint; forced to the disk first."""
        self.timings.sync()
        return {TIMINGS: self.timings.length, EVENTS: self.events.position()}

    def close(self) -> None:
        """Close all files and end the trackers' runs."""
        if self.profile:
            self.profile.close()
        self.timings.close()
        self.events.close()
        self.trackers.close()

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        if values:
            self.events.add(step, values)
            self.trackers.log(step, values)


def scalars(row: Mapping[str, Any], group: str) -> dict[str, float]:
    """The finite numbers of a row as `group/name`, its step left out."""
    return {
        f"{group}/{name}": float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def flat(config: TrainConfig) -> dict[str, Any]:
    """A training config with dotted names, as trackers show it."""
    found: dict[str, Any] = {}
    for key, value in configs.dump(config).items():
        inner = value if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): setting for name, setting in inner.items()}
    return found
