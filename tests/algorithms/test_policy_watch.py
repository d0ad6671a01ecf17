"""What is said of a policy that goes astray: once, with the knob to turn."""

from __future__ import annotations

import pytest

from luyen.algorithms.policy_config import KLConfig, RolloutConfig
from luyen.algorithms.policy_watch import PolicyWatch

FIRST = {"kl": 0.0, "entropy": 2.0, "length": 20.0, "stopped": 0.9, "reward": 0.1, "reward_std": 0.3}


@pytest.mark.parametrize(
    ("figures", "told", "knob"),
    [
        ({"kl": 21.0}, "answers are 21.0 nats from the reference's", "Raise loss.kl.beta"),
        ({"entropy": 0.3}, "fell from 2.00 to 0.30 nats", "rollout.temperature"),
        ({"length": 41.0}, "answers grew from 20 to 41 tokens", "rollout.unfinished"),
        ({"stopped": 0.4}, "60% of them without an end", "rollout.unfinished"),
        ({"length": 9.0}, "answers shrank from 20 to 9 tokens", "pay for saying little"),
        ({"reward_std": 0.0}, "all answers got the same reward, 0.1", "Take a finer reward"),
    ],
)
def test_each_thing_is_told_once(figures: dict[str, float], told: str, knob: str) -> None:
    watch = PolicyWatch(KLConfig())
    assert watch.judge(0, FIRST, FIRST) == []
    (line,) = watch.judge(4, {**FIRST, **figures}, FIRST)
    assert line.startswith("warning: rollout 5: ") and told in line and knob in line
    assert watch.judge(5, {**FIRST, **figures}, FIRST) == []
    assert watch.judge(6, FIRST, FIRST) == []
    assert watch.judge(7, {**FIRST, **figures}, FIRST), "again, after it was mended"


def test_a_reward_that_is_fooled_is_told() -> None:
    watch = PolicyWatch(KLConfig())
    assert watch.compare(0, 0.2, 0.5) == [] == watch.compare(10, 0.4, 0.6)
    (line,) = watch.compare(20, 0.9, 0.3)
    assert "the reward rose from 0.400 to 0.900 while the true score fell from 0.600 to 0.300" in line and "earlier checkpoint" in line
    assert watch.compare(30, 0.9, 0.2) == [] and watch.judge(1, FIRST, FIRST) == []


def test_updates_take_whole_micro_batches() -> None:
    config = RolloutConfig(prompts=12, minibatch=4, epochs=2)
    config.check(3)
    assert config.updates(1) == 6 and config.updates(3) == 2
    with pytest.raises(ValueError, match=r"rollout.prompts is 12, which is no multiple of rollout.minibatch 4 times train.accumulation 2"):
        config.check(2)
