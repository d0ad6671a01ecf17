"""Processes that share a rollout draw, score and learn what one process does."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luyen.algorithms.rollout_files import ANSWERS
from tests.parallel.policy_driver import main

DRIVER = str(Path(__file__).parent / "policy_driver.py")
Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(torchrun: Start, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    main(one, 5, False)
    for attempt in range(2):  # the second start goes on in the middle of a rollout
        result = torchrun(2, DRIVER, str(two), "5")
        assert result.returncode == 0 and "told" not in result.stdout, result.stderr[-2000:] + result.stdout
        shutil.move(two / "checkpoints" / "step-00000005", tmp_path / f"end-{attempt}")
    for iteration in ("iteration-000000", "iteration-000001"):
        rows = [
            [json.loads(line) for line in (folder / "rollouts" / iteration / ANSWERS).read_text().splitlines()] for folder in (one, two)
        ]
        assert rows[0] == rows[1] and len({(row["prompt"], row["answer"]) for row in rows[0]}) > 24
    ends = (one / "checkpoints" / "step-00000005", tmp_path / "end-0", tmp_path / "end-1")
    found = [load_file(folder / "model.safetensors") for folder in ends]
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-4
    assert all(torch.equal(tensor, found[2][name]) for name, tensor in found[1].items()), "a part again is the same to the bit"
    rewards = [[json.loads(line)["reward"] for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert rewards[0] == rewards[1]


@pytest.mark.slow
def test_an_error_of_the_reward_is_one_of_all(torchrun: Start, tmp_path: Path) -> None:
    result = torchrun(2, DRIVER, str(tmp_path), "2", "broken")
    assert result.stdout.count("told: the reward of an answer to p") == 2 and result.returncode == 0, result.stderr[-2000:]
