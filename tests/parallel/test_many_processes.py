"""Four processes in every combination, checkpoints that move between layouts, and processes that die or stop answering."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from curves import BASE, check_equal, layout, result, rows
from parallel_driver import main_jobs
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FOUR = {
    "data": {"data": 4}, "shard": {"shard": 4}, "tensor": {"tensor": 4}, "data-shard": {"data": 2, "shard": 2},
    "data-tensor": {"data": 2, "tensor": 2}, "shard-tensor": {"shard": 2, "tensor": 2},
    "context": {"context": 4}, "data-context": {"data": 2, "context": 2}, "context-tensor": {"context": 2, "tensor": 2},
    "shard-context": {"shard": 2, "context": 2},
}  # fmt: skip
ODD: dict[str, Any] = {"vocab_size": 49, "tied": True, "num_kv_heads": 2}
"""A vocabulary that no ranks divide, a head that is the embedding, grouped heads; with layers recomputed."""
ODDLY = ("data-tensor", "shard-tensor", "context-tensor", "shard-context")
BY_RANK_1 = {"rank": 1, "name": "SIGTERM"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Path:
    """All layouts of four processes, and one process."""
    folder = tmp_path_factory.mktemp("four")
    jobs = {name: layout(**axes) for name, axes in FOUR.items()}
    odd = {"odd-" + name: {"toy": ODD, "config": {**BASE, "activations": "full", "parallel": FOUR[name]}} for name in ODDLY}
    jobs |= copy.deepcopy(odd)
    done = train(4, folder, jobs, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    main_jobs([{"folder": str(folder / "one"), **layout()}, {"folder": str(folder / "odd-one"), "toy": ODD, "config": BASE}])
    return folder


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_as_one_does(root, name):
    check_equal(root / "one", root / name)


@pytest.mark.parametrize("name", ODDLY)
def test_odd_sizes_are_split_as_well(root, name):
    check_equal(root / "odd-one", root / f"odd-{name}")


@pytest.mark.parametrize(
    ("four", "two", "toy"), [({"shard": 2, "tensor": 2}, {"shard": 2}, {}), ({"context": 2, "tensor": 2}, {"tensor": 2}, ODD)], ids=str
)
def test_a_checkpoint_goes_from_one_to_four_to_two_to_one(root, tmp_path, train, four, two, toy):
    """Whole in one, parts of four, other parts of two, whole in one: the curve is that of one process that never stopped."""
    main_jobs([{"folder": str(tmp_path / "moved"), **layout(), "toy": toy, "signal": {"rank": 0, "nth": 3, "name": "SIGTERM"}}])
    assert result(tmp_path / "moved")["exit_code"] == 143
    for processes, axes, nth in ((4, four, 4), (2, two, 5)):
        job = {**layout(**axes), "toy": toy, "in": "moved", "signal": {**BY_RANK_1, "nth": nth}}
        train(processes, tmp_path, {"job": job}, timeout=200)
        assert result(tmp_path / "moved")["exit_code"] == 143
    main_jobs([{"folder": str(tmp_path / "moved"), **layout(), "toy": toy}])
    one = root / ("odd-one" if toy else "one")
    (tmp_path / "moved" / "gradients.safetensors").write_bytes((one / "gradients.safetensors").read_bytes())
    check_equal(one, tmp_path / "moved")


@pytest.mark.parametrize("axes", [{"data": 2}, {"shard": 2}, {"tensor": 2}, {"context": 2}, {"pipeline": 2}], ids=str)
def test_a_killed_rank_is_started_again_and_the_end_is_the_same_to_the_bit(tmp_path, train, axes):
    job = copy.deepcopy(layout(**axes))
    job["config"]["checkpoint"] = {"every_steps": 4}
    job["config"]["parallel"]["timeout_seconds"] = 20
    train(2, tmp_path, {"whole": copy.deepcopy(job)}, timeout=200)
    killed = {**copy.deepcopy(job), "fatal": True, "signal": {"rank": 1, "nth": 11, "name": "SIGKILL", "mark": str(tmp_path / "mark")}}
    done = train(2, tmp_path, {"killed": killed}, restarts=3, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mark").exists()
    whole, again = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all((whole[name] == again[name]).all() for name in whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


@pytest.mark.parametrize("axes", [{"data": 2}, {"shard": 2}, {"tensor": 2}, {"context": 2}, {"pipeline": 2}], ids=str)
def test_a_rank_that_stops_answering_is_named_within_the_timeout(tmp_path, train, axes):
    job = copy.deepcopy(layout(**axes))
    job["config"]["parallel"]["timeout_seconds"] = 6
    job |= {"fatal": True, "signal": {"rank": 1, "nth": 5, "name": "SIGSTOP"}}
    done = train(2, tmp_path, {"stopped": job}, timeout=120)
    assert done.returncode != 0
    assert "rank 0: RankLost: rank 1 of 2 died or did not answer for 6 s, seen by rank 0" in done.stderr
    assert len([row for row in rows(tmp_path / "stopped") if "loss" in row]) in (2, 3, 4)


def test_the_noise_of_a_layout_is_not_more_than_rounding(root):
    """Against a run that is wrong on purpose: half of the rows."""
    main_jobs([{"folder": str(root / "half"), "toy": {"rows": 1}, "config": {**BASE, "steps": 3}}])
    assert abs(rows(root / "half")[1]["loss"] / rows(root / "one")[1]["loss"] - 1) > 1e-4
