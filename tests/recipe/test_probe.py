"""A probe runs what the stage would run: compiled where the whole stage is, its slices in the host's memory where the stage's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luyen.core import distributed
from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.engine import compiling
from luyen.engine.algorithm import Hooks, TrainResult
from luyen.engine.compiling import worth
from luyen.engine.config import TrainConfig
from luyen.engine.estimate import FIRST_STEP_BYTES, LIBRARIES_BYTES, Speed
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
    monkeypatch.setattr(probe, "check", lambda train: None)
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


@pytest.mark.parametrize("parallel", [{"shard": 4}, {"tensor": 2}, {"context": 2}, {}])
def test_it_is_foretold_as_it_runs_in_one_process(
    ran: list[TrainConfig], parallel: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever layout the stage has, and also where a launcher has started others."""
    alone = of_stage(config(), MODEL)
    plain = probe.probe(config(), MODEL, predicted=0.0, steps=STEPS)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    stage = of_stage(config(parallel=parallel), MODEL)
    assert stage.layout.devices > 1 and stage.seconds(Speed(1e12, 1e11)) < alone.seconds(Speed(1e12, 1e11))
    seen = []
    fit = probe.fit
    monkeypatch.setattr(probe, "fit", lambda *given: (seen.append(distributed.ranks()), fit(*given))[1])
    found = probe.probe(config(parallel=parallel), MODEL, predicted=stage.seconds(Speed(1e12, 1e11)), steps=STEPS)
    assert seen == [1] and distributed.ranks() == 4
    assert found.expected_bytes == plain.expected_bytes == alone.bytes + LIBRARIES_BYTES + FIRST_STEP_BYTES
    assert found.expected_seconds == pytest.approx(alone.seconds(Speed(1e12, 1e11))) == plain.expected_seconds


def test_where_the_stage_cannot_train_the_probe_says_so() -> None:
    with pytest.raises(ConfigError, match="train.parallel.offload.*device cpu"):
        probe.probe(config(parallel={"offload": True}), MODEL, predicted=0.0, steps=1)
    with pytest.raises(ConfigError, match="train.compile with layers split"):
        probe.probe(config(parallel={"tensor": 2}, compile="always"), MODEL, predicted=0.0, steps=1)
