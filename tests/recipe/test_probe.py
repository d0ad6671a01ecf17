"""A probe runs what the stage would run: compiled where the whole stage is, its slices in the host's memory where the stage's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.engine import compiling
from luyen.engine.algorithm import Hooks, TrainResult
from luyen.engine.compiling import worth
from luyen.engine.config import TrainConfig
from luyen.engine.estimate import Speed
from luyen.models.presets import preset
from luyen.recipe import probe
from luyen.recipe.configs import PretrainConfig
from luyen.recipe.estimate import of_stage

MODEL = preset("llama-1m", 64, num_layers=1)
STEPS = 5
SECONDS = [9.0, 1.0, 1.0, 1.0, 1.0]
"""Of the five steps; the first compiles."""


def config(**train: Any) -> PretrainConfig:
    train = {"steps": 500, "device": "cpu", **train}
    return load(PretrainConfig, {"data": "-", "tokenizer": "-", "batch": {"rows": 1, "length": 16}, "train": train})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The loop's configs, in a list; the loop itself is left out. The stage's 500 steps are worth compiling, the probe's 5 are not."""
    asked: list[TrainConfig] = []

    def fit(algorithm: Any, config: TrainConfig, folder: Path, *, seed: int = 0, hooks: Hooks | None = None) -> TrainResult:
        asked.append(config)
        (folder / "timings.jsonl").write_text("".join(json.dumps({"step": 1, "seconds": seconds}) + "\n" for seconds in SECONDS))
        return TrainResult(STEPS, 1, 1, 1.0, {}, 1.0, 1, None)

    operations = of_stage(config(), MODEL).work.operations
    monkeypatch.setattr(compiling, "WORTH", {"cpu": operations / 10})
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: "")
    monkeypatch.setattr(probe, "training_rate", lambda train, estimate: Speed(1e12, 1e11))
    monkeypatch.setattr(probe, "fit", fit)
    return asked


@pytest.mark.parametrize(
    ("train", "compiles"),
    [
        ({}, True),
        ({"compile": "never"}, False),
        ({"steps": 20}, False),
        ({"parallel": {"tensor": 2}}, False),
        ({"parallel": {"shard": 2}}, True),
        ({"activations": "selective"}, False),
    ],
)
def test_it_compiles_where_the_stage_does(ran: list[TrainConfig], train: dict[str, Any], compiles: bool) -> None:
    found = probe.probe(config(**train), MODEL, predicted=0.0, steps=STEPS)
    (short,) = ran
    assert short.steps == STEPS and worth(short.compile, None, probe.pick_device("cpu"), False, short.activations) == compiles
    assert found.step_seconds == 1.0
    assert found.seconds == config(**train).train.steps + (8.0 if compiles else 0.0), "compiling takes its time once"


def test_what_the_stage_keeps_in_the_hosts_memory_the_probe_does(ran: list[TrainConfig]) -> None:
    probe.probe(config(parallel={"shard": 2, "offload": True}), MODEL, predicted=0.0, steps=STEPS)
    (short,) = ran
    assert short.parallel.offload and short.parallel.shard == 1


def test_where_the_stage_cannot_train_the_probe_says_so() -> None:
    with pytest.raises(ConfigError, match="train.parallel.offload.*device cpu"):
        probe.probe(config(parallel={"offload": True}), MODEL, predicted=0.0, steps=1)
    with pytest.raises(ConfigError, match="train.compile with layers split"):
        probe.probe(config(parallel={"tensor": 2}, compile="always"), MODEL, predicted=0.0, steps=1)
