"""Twenty steps in every layout are one process' twenty steps: loss, gradients, samples, evaluations; and what a layout refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from curves import BASE, STEPS, check_equal, layout, result, rows
from parallel_driver import main_jobs

CUT: dict[str, Any] = {"toy": {"rows": 4}, "config": {**BASE, "accumulation": 1}}
MUON: dict[str, Any] = {"config": {**BASE, "optimizer": {"name": "muon", "learning_rate": 1e-2}}}
EXPERTS: dict[str, Any] = {"toy": {"variant": {"experts": {"count": 4, "per_token": 1, "intermediate_size": 12, "balance": 0.5}}}}
LION = {"optimizer": {"name": "lion", "learning_rate": 1e-3}}


def stop_at(micro_batch: int, **axes: int) -> dict[str, Any]:
    """A job whose rank 1 gets SIGTERM at its nth micro-batch."""
    return {**layout(**axes), "in": "moved", "signal": {"rank": 1, "nth": micro_batch, "name": "SIGTERM"}}


SELECTIVE = ("shard", "tensor", "context", "pipeline")
JOBS: dict[str, dict[str, Any]] = {
    "data": layout(data=2), "shard": layout(shard=2), "tensor": layout(tensor=2), "context": layout(context=2),
    "pipeline": layout(pipeline=2), "cut": CUT, "muon": MUON,
    **{f"selective-{axis}": {"config": {**BASE, "activations": "selective", "parallel": {axis: 2}}} for axis in SELECTIVE},
    "lion": {"config": {**BASE, **LION, "activations": "full", "parallel": {"shard": 2}}},
    "term": stop_at(5, shard=2), "term-again": stop_at(8, tensor=2),
    "nan": {**layout(data=2), "signal": {"rank": 1, "nth": 5, "name": "nan"}},
    **{f"experts-{axis}": {**layout(**{axis: 2}), **EXPERTS} for axis in ("data", "shard", "context", "pipeline")},
    "no-muon": {"config": {**MUON["config"], "parallel": {"shard": 2}}},
    "too-many": layout(data=3),
    "heads": {**layout(tensor=2), "toy": {"num_kv_heads": 1}},
    "few-rows": {"toy": {"rows": 1}, "config": {**BASE, "accumulation": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Path:
    """All jobs in two processes, and their equals in this one."""
    folder = tmp_path_factory.mktemp("layouts")
    done = train(2, folder, copy.deepcopy(JOBS))
    assert done.returncode == 0, done.stderr[-3000:]
    one = {"one": layout(), "one-cut": CUT, "one-muon": MUON, "one-lion": {"config": {**BASE, **LION, "activations": "full"}}}
    one["one-experts"] = {**layout(), **EXPERTS}
    main_jobs([{"folder": str(folder / name), **copy.deepcopy(job)} for name, job in one.items()])
    return folder


@pytest.mark.parametrize(
    ("name", "equal"),
    [(name, "one") for name in ("data", "shard", "tensor", "context", "pipeline")]
    + [(f"selective-{axis}", "one") for axis in SELECTIVE]
    + [("cut", "one-cut"), ("muon", "one-muon"), ("experts-data", "one-experts"), ("experts-shard", "one-experts")],
)
def test_a_layout_trains_as_one_process_does(root, name, equal):
    check_equal(root / equal, root / name)
    assert len([row for row in rows(root / name) if "loss" in row]) == STEPS


def test_sharding_goes_with_lion_and_recomputed_layers(root):
    check_equal(root / "one-lion", root / "lion")


def test_only_the_main_process_writes_and_all_know_the_result(root):
    names = {path.name for path in (root / "shard").iterdir()}
    assert names >= {"metrics.jsonl", "checkpoints", "timings.jsonl", "samples.jsonl"}
    assert result(root / "shard", 1) == result(root / "shard")
    assert len(list((root / "data").glob("metrics*"))) == 1


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_another_layout_goes_on(root):
    """Stopped in two processes by slices, then in two by heads; one process ends it, and the whole is as if never stopped."""
    for rank in (0, 1):
        assert result(root / "moved", rank)["exit_code"] == 143
    steps = sorted(path.name for path in (root / "moved" / "checkpoints").iterdir())
    assert steps == ["step-00000005", "step-00000009"]
    for step in steps:
        names = {path.name[:11] for path in (root / "moved" / "checkpoints" / step / "model").iterdir()}
        assert names == {"shard-00001", "shard-00002"}, "every rank wrote its part, and another layout reads it"
    main_jobs([{"folder": str(root / "moved"), **layout()}])
    (root / "moved" / "gradients.safetensors").write_bytes((root / "one" / "gradients.safetensors").read_bytes())
    check_equal(root / "one", root / "moved")


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_update(root):
    for rank in (0, 1):
        found = result(root / "nan", rank)
        assert found["exit_code"] == 4 and "step 5: the loss is nan" in found["error"]
    assert rows(root / "nan")[:-1] == rows(root / "one")[: len(rows(root / "nan")) - 1]


REFUSED = {
    "no-muon": "optimizer.name with train.parallel.shard; found muon; expected adamw or lion or sgd",
    "too-many": "train.parallel; found data 3 x shard 1 x tensor 1 = 3 processes; expected 2, as many as were started",
    "heads": "train.parallel.tensor 2; found num_kv_heads 1; expected a multiple of it",
    "experts-context": "train.parallel.context; found 4 experts; expected a decoder without experts",
    "experts-pipeline": "train.parallel.pipeline; found 4 experts; expected a decoder without experts",
    "few-rows": "a micro-batch is cut for several ranks; found 1 samples in it; expected at least 2",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told_on_every_rank(root, name):
    for rank in (0, 1):
        assert REFUSED[name] in result(root / name, rank)["error"]
