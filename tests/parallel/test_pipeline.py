"""Pipelines: every schedule and combination trains as one process does, and what a pipeline refuses; how layers are dealt to stages."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from curves import BASE, check_equal, layout, result, rows
from hypothesis import given
from hypothesis import strategies as st
from parallel_driver import main_jobs

from luyen.core.errors import ConfigError
from luyen.engine.layouts import bounds, rank_layers
from luyen.engine.parallel.pipeline import check_count

LONG = pytest.mark.timeout(600)
DEEP: dict[str, Any] = {"toy": {"num_layers": 4}, "config": {**BASE, "accumulation": 4}}
WIDE: dict[str, Any] = {"config": {**BASE, "accumulation": 4}}
CUT: dict[str, Any] = {"toy": {"rows": 4, "tied": False}, "config": {**BASE, "accumulation": 1, "activations": "full"}}
MUON: dict[str, Any] = {"config": {**BASE, "optimizer": {"name": "muon", "learning_rate": 1e-2}}}
UNTIED: dict[str, Any] = {"toy": {"num_layers": 4, "tied": False}, "config": {**BASE, "accumulation": 4}}
ONE = {"plain": layout(), "deep": DEEP, "wide": WIDE, "cut": CUT, "muon": MUON, "untied": UNTIED}
INTERLEAVED = {"pipeline": 2, "pipeline_stages": 2}


def on(job: dict[str, Any], **axes: int) -> dict[str, Any]:
    """The same job in a layout."""
    return {**job, "config": {**job["config"], "parallel": axes}}


TWO = {
    "interleaved": ("deep", on(DEEP, **INTERLEAVED)), "pieces": ("cut", on(CUT, pipeline=2, pipeline_pieces=3)),
    "muon": ("muon", on(MUON, pipeline=2)),
}  # fmt: skip
FOUR = {
    "four stages": ("deep", on(DEEP, pipeline=4)), "data": ("wide", on(WIDE, pipeline=2, data=2)),
    "shard": ("wide", on(WIDE, pipeline=2, shard=2)), "tensor": ("plain", layout(pipeline=2, tensor=2)),
    "context": ("plain", layout(pipeline=2, context=2)), "interleaved shard": ("untied", on(UNTIED, **INTERLEAVED, shard=2)),
}  # fmt: skip
REFUSED = {
    "few": (on({"config": {**BASE, "accumulation": 1}}, pipeline=2), "micro-batches of a step; found 1; expected at least 2"),
    "many stages": (layout(**INTERLEAVED), "pipeline x pipeline_stages; found 4; expected at most 2, the layers"),
    "few rows": (on({"toy": {"rows": 1}, "config": BASE}, pipeline=2, pipeline_pieces=2), "cut for a pipeline; found 1 samples in it"),
}
NAN = {**layout(pipeline=2), "signal": {"rank": 1, "nth": 5, "name": "nan"}}
MOVED = {**layout(pipeline=2), "signal": {"rank": 1, "nth": 5, "name": "SIGTERM"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Path:
    """One process, two and four."""
    folder = tmp_path_factory.mktemp("pipelines")
    two = {name: job for name, (_, job) in TWO.items()} | {name: job for name, (job, _) in REFUSED.items()}
    jobs = {2: two | {"nan": NAN, "moved": MOVED}, 4: {name: job for name, (_, job) in FOUR.items()}}
    for processes, own in jobs.items():
        done = train(processes, folder, copy.deepcopy(own), timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    main_jobs([{"folder": str(folder / f"one-{name}"), **copy.deepcopy(job)} for name, job in ONE.items()])
    return folder


@pytest.mark.slow
@LONG
@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_a_pipeline_trains_as_one_process_does(root, name):
    check_equal(root / f"one-{(TWO | FOUR)[name][0]}", root / name)


@pytest.mark.slow
@LONG
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told_on_every_rank(root, name):
    for rank in (0, 1):
        assert REFUSED[name][1] in result(root / name, rank)["error"]


@pytest.mark.slow
@LONG
def test_a_loss_that_is_not_finite_is_told_to_the_ranks_that_have_no_loss(root):
    for rank in (0, 1):
        found = result(root / "nan", rank)
        assert found["exit_code"] == 4 and "step 3: the loss is nan" in found["error"]


@pytest.mark.slow
@LONG
def test_a_pipeline_that_was_stopped_goes_on_in_one_process(root):
    for rank in (0, 1):
        assert result(root / "moved", rank)["exit_code"] == 143
    assert len([row for row in rows(root / "moved") if "loss" in row]) == 3
    main_jobs([{"folder": str(root / "moved"), **layout()}])
    (root / "moved" / "gradients.safetensors").write_bytes((root / "one-plain" / "gradients.safetensors").read_bytes())
    check_equal(root / "one-plain", root / "moved")


@given(st.integers(1, 80), st.data())
def test_every_stage_has_layers_and_as_many_as_others(layers, data):
    stages = data.draw(st.integers(1, layers))
    ends = bounds(layers, stages)
    sizes = [end - begin for begin, end in zip(ends, ends[1:], strict=False)]
    assert (ends[0], ends[-1], len(sizes)) == (0, layers, stages)
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
    assert rank_layers(layers, stages) == sizes


@pytest.mark.parametrize(("count", "ranks", "stages"), [(1, 2, 1), (3, 4, 1), (3, 4, 2), (5, 2, 2)])
def test_too_few_micro_batches_are_refused(count, ranks, stages):
    with pytest.raises(ConfigError, match="pipeline_pieces"):
        check_count(count, ranks, stages)


@pytest.mark.parametrize(("count", "ranks", "stages"), [(2, 2, 1), (5, 2, 1), (4, 2, 2), (10, 4, 2)])
def test_enough_micro_batches_fill_a_pipeline(count, ranks, stages):
    check_count(count, ranks, stages)
