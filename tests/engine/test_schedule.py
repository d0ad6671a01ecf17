"""Learning rates by hand."""

import pytest

from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.engine.config import ScheduleConfig, TrainConfig
from luyen.engine.schedule import factor


def rates(name, steps=10, **values):
    config = ScheduleConfig(name=name, **values)
    return [factor(config, step, steps) for step in range(steps)]


def test_warm_up_never_starts_at_zero_and_reaches_the_peak_once():
    assert rates("constant", warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])
    assert rates("constant", warmup_fraction=0.4) == rates("constant", warmup_steps=4)
    assert rates("constant", warmup_fraction=0.4, warmup_steps=0) == [1.0] * 10


def test_linear():
    expected = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates("linear", warmup_steps=0, final_fraction=0.0) == pytest.approx(expected)
    assert rates("linear", warmup_steps=0, final_fraction=0.5)[5] == pytest.approx(0.75)


def test_cosine():
    curve = rates("cosine", steps=12, warmup_steps=0, final_fraction=0.1)
    assert curve[0] == 1.0
    assert curve[4] == pytest.approx(0.1 + 0.9 * 0.75)  # cos(pi / 3) = 1/2
    assert curve[6] == pytest.approx(0.55)
    assert curve[8] == pytest.approx(0.1 + 0.9 * 0.25)


def test_wsd_is_stable_then_falls_by_the_root():
    curve = rates("wsd", steps=20, warmup_steps=0, final_fraction=0.0, decay_fraction=0.2)
    assert curve[:17] == [1.0] * 17
    assert curve[17:] == pytest.approx([0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_always_above_zero_and_never_above_the_peak(name, steps):
    curve = rates(name, steps=steps, warmup_fraction=0.1)
    assert all(0 < value <= 1 for value in curve)
    assert curve[-1] >= 0.1


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps 20 is more than the 10 steps"):
        load(TrainConfig, {"steps": 10, "schedule": {"warmup_steps": 20}})
