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


def test_cosine_with_cycles_begins_each_at_the_peak():
    assert rates("cosine", steps=98, warmup_steps=0, final_fraction=0.0, cycles=49)[::2] == [1.0] * 49
    curve = rates("cosine", steps=12, warmup_steps=0, final_fraction=0.1, cycles=2)
    assert curve[:6] == pytest.approx(rates("cosine", steps=6, warmup_steps=0, final_fraction=0.1))
    assert curve[6:] == pytest.approx(curve[:6])


def test_polynomial():
    expected = [1, 0.64, 0.36, 0.16, 0.04]
    assert rates("polynomial", steps=5, warmup_steps=0, final_fraction=0.0) == pytest.approx(expected)
    assert rates("polynomial", steps=5, warmup_steps=0, final_fraction=0.5) == pytest.approx([0.5 + value / 2 for value in expected])
    assert rates("polynomial", power=1.0, warmup_steps=2) == pytest.approx(rates("linear", warmup_steps=2))


def test_inverse_sqrt_is_equation_3_over_its_peak():
    """min(s^-0.5, s W^-1.5) for the update s from 1, and W = warm-up + 1, where it is largest."""
    expected = [min(s**-0.5, s * 4**-1.5) / 4**-0.5 for s in range(1, 17)]
    curve = rates("inverse_sqrt", steps=16, warmup_steps=3)
    assert curve == pytest.approx(expected)
    assert curve[3] == 1.0 and curve[15] == 0.5
    assert rates("inverse_sqrt", steps=16, warmup_steps=3) == rates("inverse_sqrt", steps=30, warmup_steps=3)[:16]


def test_ramp_rises_by_the_same_factor_to_the_peak():
    assert rates("ramp", steps=5, warmup_steps=0, final_fraction=1e-4) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    with pytest.raises(ConfigError, match="nothing rises exponentially from 0"):
        load(TrainConfig, {"schedule": {"name": "ramp", "final_fraction": 0.0}})


@pytest.mark.parametrize("name", ["constant", "linear", "polynomial", "cosine", "wsd", "inverse_sqrt"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_always_above_zero_and_never_above_the_peak(name, steps):
    curve = rates(name, steps=steps, warmup_fraction=0.1)
    assert all(0 < value <= 1 for value in curve)
    assert curve[-1] >= 0.1


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps 20 is more than the 10 steps"):
        load(TrainConfig, {"steps": 10, "schedule": {"warmup_steps": 20}})
