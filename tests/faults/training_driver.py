"""Trains the toy model in forked children and breaks them on purpose. Run by the tests as a program of its own.

    python training_driver.py PLAN.json

The plan is a list of {"folder", "attempts": [fault or null, ...], "config": {...}}. Every attempt is a new process that calls `fit` on the
folder, as a person would who types the same command again. A fault names a point in the code and which passing of it:
{"point": "os.rename", "nth": 2, "when": "before" | "middle" | "after", "do": "kill" | "term" | "full"}. Prints the exit statuses as JSON.

Children are forked from a process in which torch uses one thread, so one import of torch serves all of them.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from training_toys import toy_algorithm, toy_config

from luyen.core import interrupt, progress
from luyen.core.errors import LuyenError
from luyen.engine import checkpoint
from luyen.engine.trainer import Hooks, fit
from luyen.objectives.loss import Loss


class Fault:
    """Something that happens at the nth passing of a point."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.passed = spec, 0

    def due(self, when: str) -> bool:
        """Count a passing at its start; is it now?"""
        self.passed += when == "before"
        return self.passed == self.spec["nth"] and when == self.spec.get("when", "before")

    def happen(self) -> None:
        """Kill the process, ask it to stop, or tell it that the disk is full."""
        if self.spec["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.spec["do"] == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_done(point: str, arguments: tuple[Any, ...]) -> None:
    """What the disk holds when a slow operation is cut in the middle."""
    if point == "save_file":
        tensors, path = arguments
        checkpoint_bytes = b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"half":' + os.urandom(64)
        Path(path).write_bytes(checkpoint_bytes)
    elif point == "write_share":
        arguments[0].mkdir()
        (arguments[0] / "shard-00001-model-00001-of-00001.safetensors").write_bytes(os.urandom(64))
    elif point == "shutil.rmtree":
        files = sorted(path for path in Path(arguments[0]).rglob("*") if path.is_file())
        for path in files[: len(files) // 2]:
            path.unlink()


def plant(owner: Any, name: str, point: str, fault: Fault) -> None:
    """Wrap a function so that the fault happens before, in the middle of, or after its nth call."""
    plain = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if fault.due("before"):
            fault.happen()
        if fault.due("middle"):
            half_done(point, arguments)
            fault.happen()
        result = plain(*arguments, **keywords)
        if fault.due("after"):
            fault.happen()
        return result

    setattr(owner, name, wrapped)


POINTS = {
    "os.rename": (os, "rename"), "os.replace": (os, "replace"), "os.fsync": (os, "fsync"), "os.mkdir": (os, "mkdir"),
    "shutil.rmtree": (shutil, "rmtree"), "save_file": (checkpoint, "save_file"), "retain": (checkpoint, "retain"),
    "write_share": (checkpoint, "write_share"),
}  # fmt: skip


def attempt(folder: Path, values: dict[str, Any], spec: dict[str, Any] | None) -> None:
    """One process of a run, from start to its end or its fault."""
    algorithm = toy_algorithm(**values.pop("toy", {}))
    plain_loss = algorithm.loss

    def loss(batch: Any) -> Loss:
        """The loss, with the samples' ids as a number in the log, so that equal logs mean equal samples."""
        found = plain_loss(batch)
        return Loss(found.total, found.count, {"samples": (float(zlib.crc32(" ".join(batch.sample_ids).encode())), 1)})

    def evaluate() -> dict[str, float]:
        """Random numbers, which must not reach the run, and a figure of the weights or of the average in their place."""
        weights = sum(parameter.double().sum().item() for parameter in algorithm.model.parameters())
        return {"random": random.random() + torch.rand(()).item(), "weights": weights}

    algorithm.loss = loss  # type: ignore[method-assign]
    hooks = {"evaluate": evaluate, "samples": lambda: [{"prompt": "p", "answer": "a"}]}
    if spec is not None and "bytes" in spec:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spec["bytes"], spec["bytes"]))
    elif spec is not None and spec["point"] in ("loss", "evaluate", "samples"):
        owner = type("Owner", (), {"loss": staticmethod(loss), **{name: staticmethod(hook) for name, hook in hooks.items()}})
        plant(owner, spec["point"], spec["point"], Fault(spec))
        algorithm.loss = owner.loss  # type: ignore[attr-defined]
        hooks = {"evaluate": owner.evaluate, "samples": owner.samples}  # type: ignore[attr-defined]
    elif spec is not None:
        plant(*POINTS[spec["point"]], spec["point"], Fault(spec))
    with interrupt.listening():
        fit(algorithm, toy_config(**values), folder, seed=7, hooks=Hooks(**hooks))


def child(folder: Path, values: dict[str, Any], spec: dict[str, Any] | None) -> int:
    """Fork, run the attempt, and return its exit status (negative: the signal that ended it)."""
    sys.stdout.flush()
    identifier = os.fork()
    if identifier:
        return os.waitstatus_to_exitcode(os.waitpid(identifier, 0)[1])
    status = 70
    try:
        with open(folder.with_name(f"{folder.name}.out"), "a", encoding="utf-8") as out:
            os.dup2(out.fileno(), 1)
            progress.use(progress.Plain())
            try:
                attempt(folder, dict(values), spec)
                status = 0
            except LuyenError as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                status = error.exit_code
    finally:
        os._exit(status)


def main() -> None:
    """Run the plan."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # what torch imports and prepares at its first step, once for all children
        attempt(Path(folder), {"steps": 1}, None)
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    statuses = []
    for run in plan:
        folder = Path(run["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        statuses.append([child(folder, run.get("config", {}), spec) for spec in run["attempts"]])
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
