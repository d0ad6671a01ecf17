"""Shared by the training faults: run a plan with the driver, and compare what two runs left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from event_files import scalars_of
from safetensors.torch import load_file

HERE = Path(__file__).parent
STEPS = 30
CONFIG: dict[str, Any] = {"steps": STEPS, "evaluate_every": 7, "checkpoint": {"every_steps": 5, "asynchronous": True}}


def run_plan(folder: Path, plan: list[dict[str, Any]], **environment: str) -> list[list[int]]:
    """Exit statuses of every attempt of every run of the plan."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]), **environment}
    command = [sys.executable, str(HERE / "training_driver.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    result: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return result


def newest(folder: Path) -> Path:
    """The newest checkpoint folder of a run."""
    return max((folder / "checkpoints").glob("step-*"))


def outcome(folder: Path) -> dict[str, str]:
    """sha256 of everything that an interrupted run must share with an uninterrupted one, and the temporary leftovers."""
    last = newest(folder)
    paths = [*sorted(last.rglob("*.safetensors")), folder / "metrics.jsonl", folder / "samples.jsonl"]
    assert len(paths) == 5
    hashes = {str(path.relative_to(folder)): hashlib.sha256(_content(path)).hexdigest() for path in paths}
    hashes["events"] = str([found["step"] for found in scalars_of(folder) if "train/loss" in found])
    hashes["state"] = (last / "state.json").read_text(encoding="utf-8")
    hashes["leftovers"] = str(sorted(path.name for path in (folder / "checkpoints").glob(".*")))
    return hashes


def _content(path: Path) -> bytes:
    """The bytes of a file; of a shard those of its tensors, since safetensors writes the entries of a header's metadata in any order."""
    if not path.name.startswith("shard-"):
        return path.read_bytes()
    return b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(load_file(path).items()))


def told(folder: Path) -> str:
    """What the attempts of a run printed."""
    return folder.with_name(f"{folder.name}.out").read_text(encoding="utf-8")
