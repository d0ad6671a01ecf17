"""Toy matrices are too small for two threads, and so is every process that the tests start."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """One thread during these tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start a program under torchrun; the launcher finds a free port by itself."""

    def start(processes: int, *words: str, restarts: int = 0, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, *launcher, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)

    return start


@pytest.fixture(scope="session")
def train(torchrun: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run jobs of the driver in one start of several processes: name -> job, in folders of these names."""

    def start(processes: int, root: Path, jobs: dict[str, dict[str, Any]], **options: Any) -> subprocess.CompletedProcess[str]:
        plan = [{"folder": str(root / job.pop("in", name)), **job} for name, job in jobs.items()]
        path = root / f"plan-{processes}.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        return torchrun(processes, str(HERE / "parallel_driver.py"), str(path), **options)

    return start
