"""Checkpoints of which every process writes its part: read in other layouts, exported, and cut by kills and full disks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import BASE, check_equal, result, rows
from parallel_driver import HEADS, main_jobs
from safetensors.torch import load_file
from training_toys import toy_model

from luyen.engine import checkpoint, export

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAYS: dict[str, list[tuple[int, dict[str, int]]]] = {
    "slices": [(4, {"shard": 4}), (2, {"shard": 2})],
    "slices and heads": [(4, {"shard": 2, "tensor": 2}), (2, {"tensor": 2})],
    "heads and copies": [(4, {"data": 2, "tensor": 2}), (2, {"shard": 2})],
    "two copies of slices": [(4, {"data": 2, "shard": 2}), (2, {"data": 2})],
}


def job(axes: dict[str, int], **changes: Any) -> dict[str, Any]:
    """Twenty steps in this layout, saved beside the loop, with an average in the optimizer's state."""
    saving = {"asynchronous": True, "keep_last": 9, **changes}
    optimizer = {"learning_rate": 1e-2, "ema_decay": 0.5}
    return {"config": {**copy.deepcopy(BASE), "parallel": dict(axes), "checkpoint": saving, "optimizer": optimizer}}


def moved(root: Path, name: str, train: Any, **changes: Any) -> Path:
    """A run that is stopped in four processes, goes on in two, is stopped again and ends in one."""
    for number, (processes, axes) in enumerate(WAYS[name]):
        stop = {"rank": 1, "nth": (4, 5)[number] * (1 if "tensor" not in axes or axes.get("data") else 2), "name": "SIGTERM"}
        done = train(processes, root, {"job": {**job(axes, **changes), "in": "moved", "signal": stop}}, timeout=200)
        assert result(root / "moved")["exit_code"] == 143, done.stderr[-3000:]
    main_jobs([{"folder": str(root / "moved"), **job({}, **changes)}])
    return root / "moved"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process that is never stopped."""
    folder = tmp_path_factory.mktemp("one") / "one"
    main_jobs([{"folder": str(folder), **job({}, every_steps=1, keep_last=99)}])
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_saved_by_four_goes_on_in_two_and_then_in_one(tmp_path, train, one, name):
    """Loss, gradient norm and weights are those of one process; the checkpoint of four, exported, is its model of that step."""
    folder = moved(tmp_path, name, train, format="sharded")
    (folder / "gradients.safetensors").write_bytes((one / "gradients.safetensors").read_bytes())
    check_equal(one, folder)
    first, second, last = sorted((folder / "checkpoints").iterdir())
    assert {path.parent.name for path in first.rglob("shard-0000*")} == {"model", "optimizer"}
    assert len(list(first.glob("model/shard-*"))) == 4 and len(list(second.glob("model/shard-*"))) == 2
    assert len(list(last.glob("model/shard-*"))) == 1
    for path in (first, second):
        found = export.find(path)
        alone = export.find(one / "checkpoints" / path.name)
        for average in (False, True):
            left, right = (export.model_of(checkpoint, average=average).state_dict() for checkpoint in (found, alone))
            assert left.keys() == right.keys()
            assert all(torch.allclose(left[key], right[key], rtol=0, atol=1e-5) for key in left), (path, average)
        stored = sum(file.stat().st_size for file in path.glob("model/*"))
        plain = sum(parameter.numel() * 4 for parameter in toy_model(**HEADS).parameters())
        assert plain < stored < plain + 30_000, "every number is stored once"


@pytest.mark.parametrize("asynchronous", [True, False], ids=["beside the loop", "in the loop"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path, train, rank, asynchronous):
    plan = job({"shard": 2}, every_steps=4, asynchronous=asynchronous)
    plan["config"]["parallel"]["timeout_seconds"] = 20
    train(2, tmp_path, {"whole": copy.deepcopy(plan)}, timeout=200)
    kill = {"rank": rank, "nth": 3, "name": "SIGKILL", "mark": str(tmp_path / "mark")}
    done = train(2, tmp_path, {"killed": {**copy.deepcopy(plan), "fatal": True, "in_save": kill}}, restarts=2, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mark").exists()
    whole, again = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in (4, 8, 12, 16, 20)
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_rank_is_told_and_nothing_is_sealed(tmp_path, train, rank):
    plan = {**job({"shard": 2}, every_steps=4), "in_save": {"rank": rank, "nth": 3, "name": "full", "mark": str(tmp_path / "mark")}}
    plan["config"]["parallel"]["timeout_seconds"] = 20
    done = train(2, tmp_path, {"full": {**plan, "fatal": True}}, timeout=200)
    assert done.returncode != 0
    assert f"rank {rank}: StorageError: cannot write" in done.stderr and "No space left on device" in done.stderr
    root = tmp_path / "full" / "checkpoints"
    checkpoint.clean(root)
    assert [path.name for path in root.iterdir()] == ["step-00000004"]
    assert checkpoint.newest_valid(root).state["step"] == 4
