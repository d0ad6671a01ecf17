"""The trial that corrects the count of a training run: it meets a real step, leaves the random state alone and spares large models."""

import time
from dataclasses import replace

import pytest
import torch

from luyen.core.config import load
from luyen.engine import pace
from luyen.engine.config import TrainConfig
from luyen.engine.estimate import Speed, estimate_training, token_work
from luyen.engine.pace import measure_pace
from luyen.models.config import TransformerConfig
from luyen.models.presets import preset

CPU, SPEED = torch.device("cpu"), Speed(operations=1e11, bytes=3e10)


@pytest.fixture(autouse=True)
def forget() -> None:
    pace._seconds.cache_clear()


def small() -> TransformerConfig:
    sizes = {"hidden_size": 32, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 64}
    return load(TransformerConfig, {"vocab_size": 64, "context_length": 16, **sizes})


def test_layers_count_for_all_of_them_and_the_head_for_what_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def tried(model: TransformerConfig, rows: int, length: int, *_: object) -> tuple[float, float]:
        asked.append((model.num_layers, rows, length))
        return 0.002, 0.005

    monkeypatch.setattr(pace, "_seconds", tried)
    estimate = estimate_training(small(), TrainConfig(steps=3), 4, 16, trained=0.25)
    counted = (token_work(small(), 16, 0.25) * (4 * 16)).seconds(SPEED)
    assert measure_pace(estimate, SPEED, CPU, torch.float32) == pytest.approx((0.002 * 6 + 0.005 * 0.25) / counted)
    assert asked == [(1, 4, 16)]
    paced = replace(SPEED, pace=2.0)
    assert estimate.seconds(paced) == pytest.approx(2 * estimate.seconds(SPEED))


def test_a_trial_takes_real_time_once_and_draws_nothing_from_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = estimate_training(small(), TrainConfig(steps=3), 4, 16)
    before = torch.get_rng_state()
    first = measure_pace(estimate, SPEED, CPU, torch.float32)
    assert first > 0 and torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(pace, "Transformer", None)  # a second trial would fail
    assert measure_pace(estimate, SPEED, CPU, torch.float32) == first


def test_a_slower_clock_is_a_slower_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later, so layers take two and the head one."""
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    estimate = estimate_training(small(), TrainConfig(steps=3), 4, 16)
    counted = (token_work(small(), 16) * (4 * 16)).seconds(SPEED)
    assert measure_pace(estimate, SPEED, CPU, torch.float32) == pytest.approx((2 * 6 + 1) / counted)


def test_few_rows_are_tried_and_none_that_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pace, "_seconds", lambda model, rows, *_: asked.append(rows) or (1.0, 1.0))
    measure_pace(estimate_training(preset("llama-60m", 8192), TrainConfig(), 64, 512), SPEED, CPU, torch.float32)
    assert 1 <= asked[0] < 64
    large = preset("llama-60m", 8192).model_copy(update={"hidden_size": 4096, "intermediate_size": 16384, "num_heads": 32})
    assert measure_pace(estimate_training(large, TrainConfig(), 1, 4096), SPEED, CPU, torch.float32) == 1.0 and len(asked) == 1
