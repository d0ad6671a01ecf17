"""Saves beside the loop: the state is copied, a thread writes it, and training goes on.

The copy lies in the host's memory and is kept for the next save (pinned where it comes from a GPU), so asynchronous saves cost this
process once more what it writes: weights and optimizer, 12 bytes a weight with AdamW, or its share of them. One save is written at a time;
the next one waits for it, and so does the run's end. Nothing in the thread is random or touches a tensor of the run.

They are the default where a GPU computes. On a CPU the thread takes from the steps nearly what the loop no longer waits (60M weights on two
cores: 1.9 s in the loop, or 0.1 s there and steps that are 1.5 s longer), so there the memory would buy little.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from luyen.core import config as configs
from luyen.core import distributed
from luyen.core.config import Config
from luyen.engine import checkpoint
from luyen.engine.config import CheckpointConfig
from luyen.engine.meeting import Meeting
from luyen.engine.parallel.tensors import local


class Background:
    """At most one piece of work beside the caller's thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the work before, then begin this one."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised by `wait` in the caller's thread
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until nothing is under way. Raises, once, what the work raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


class Copies:
    """Copies of tensors in the host's memory; the next call of `of` reuses their room."""

    def __init__(self) -> None:
        self._room: dict[tuple[str, str], Tensor] = {}

    def of(self, groups: Mapping[str, Mapping[str, Tensor]], live: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The same tensors by group and name, none of which shares memory with `live`, the run's; what shared none is not copied again."""
        held = {tensor.untyped_storage().data_ptr() for tensor in live.values()}
        room: dict[tuple[str, str], Tensor] = {}
        found: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
        waiting = False
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() not in held:
                    found[group][name] = tensor
                    continue
                own = self._room.get((group, name))
                if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
                    own = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
                own.copy_(tensor, non_blocking=True)
                waiting |= tensor.device.type != "cpu"
                found[group][name] = room[group, name] = own
        if waiting:
            torch.accelerator.synchronize()
        self._room = room
        return found


class Saver:
    """The checkpoints of one run: when they are copied, written and deleted."""

    def __init__(self, root: Path, config: CheckpointConfig, splits_weights: bool, device: torch.device, timeout: float) -> None:
        """`splits_weights`: whether no process has the whole model; `timeout`: seconds that another process may be silent in a save."""
        self.config, self.timeout = config, timeout
        self.sharded = splits_weights if config.format == "auto" else config.format == "sharded"
        self.root = Path(distributed.told_by_main(str(root.resolve()))) if self.sharded else root
        self.asynchronous = device.type != "cpu" if config.asynchronous == "auto" else config.asynchronous
        self.finished: list[tuple[int, float]] = []
        """Step and seconds of saves that the thread has written and nobody has asked for yet."""
        self._background, self._copies = Background(), Copies()
        self._meeting: Meeting | None = None

    def save(
        self, model: nn.Module, optimizers: Iterable[Optimizer], state: Mapping[str, Any], timing: Mapping[str, Any],
        spared: Collection[int],
    ) -> None:  # fmt: skip
        """Save this moment, and delete checkpoints that are too old but none of the `spared` steps. All processes call this.

        Asynchronous: returns when the state is copied, and what goes wrong later is raised by the next call of this object.
        """
        self.wait()  # a copy is not written over while it is read
        optimizers = list(optimizers)
        if isinstance(size := getattr(model, "config", None), Config):
            state = {**state, "model": configs.dump(size)}  # so that a checkpoint alone tells what its weights are of
        snapshot = checkpoint.capture(model, optimizers, state, timing, self.sharded)
        meeting = self._meeting = Meeting(snapshot.number, self.timeout)
        if not self.asynchronous:
            self._write(snapshot, meeting, spared)
            return
        if snapshot.groups:
            live = {**checkpoint.model_tensors(model), **checkpoint.optimizer_tensors(model, optimizers)}
            groups = self._copies.of(snapshot.groups, {name: local(tensor) for name, tensor in live.items()})
            snapshot = dataclasses.replace(snapshot, groups=groups)

        def work() -> None:
            started = time.perf_counter()
            self._write(snapshot, meeting, spared)
            self.finished.append((snapshot.state["step"], time.perf_counter() - started))

        self._background.start(work)

    def check(self) -> None:
        """Raise what went wrong in the background, if it is known yet."""
        if not self._background.busy:
            self._background.wait()

    def wait(self) -> None:
        """Wait for the pending save. Raises what went wrong in it."""
        self._background.wait()

    def leave(self) -> None:
        """The other processes are gone: the pending save, if it needs them, is given up."""
        if self._meeting is not None:
            self._meeting.over.set()

    def _write(self, snapshot: checkpoint.Snapshot, meeting: Meeting, spared: Collection[int]) -> None:
        written = checkpoint.write(self.root, snapshot, meeting)
        if distributed.is_main():
            checkpoint.retain(self.root, self.config.keep_last, spared, written)
