"""Averages of the weights come out the same in every layout: slices are averaged where they lie, checkpoints by the main process."""

import copy

import pytest
from curves import result
from parallel_driver import main_jobs
from safetensors.torch import load_file

COMMON = {"steps": 6, "evaluate_every": 3, "accumulation": 2, "precision": "fp32"}
AVERAGES = {
    "followed": {"optimizer": {"learning_rate": 1e-2, "ema_decay": 0.5}, "checkpoint": {"every_steps": 2}},
    "checkpoints": {"checkpoint": {"every_steps": 2, "average_last": 3, "keep_last": 1}},
}


@pytest.mark.slow
def test_an_average_is_the_same_in_every_layout(tmp_path, train):
    jobs = {
        f"{name}-{axis}": {"config": {**COMMON, **values, "parallel": {axis: 2}}}
        for name, values in AVERAGES.items()
        for axis in ("data", "shard", "tensor", "pipeline")
    }
    done = train(2, tmp_path, copy.deepcopy(jobs))
    assert done.returncode == 0, done.stderr[-3000:]
    plain = {"plain": {}, **AVERAGES}
    main_jobs([{"folder": str(tmp_path / name), "config": copy.deepcopy({**COMMON, **values})} for name, values in plain.items()])
    for name in jobs:
        alone = tmp_path / name.partition("-")[0]
        one, other, last = (load_file(folder / "weights.safetensors") for folder in (alone, tmp_path / name, tmp_path / "plain"))
        assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-5, name
        assert max(float((one[key] - last[key]).abs().max()) for key in one) > 1e-3, name
        found, expected = (result(folder)["evaluation"]["mean"] for folder in (tmp_path / name, alone))
        assert found == pytest.approx(expected, rel=1e-5), name
