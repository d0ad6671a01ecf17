"""Alarms on made-up curves: none on healthy ones, one within a few steps where training leaves its course."""

import dataclasses
import json
import math

import numpy
import pytest
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.config import load
from luyen.engine.config import WatchConfig
from luyen.engine.divergence import CALM, FEWEST, Divergence, limit
from luyen.engine.trainer import fit
from luyen.objectives.loss import Loss

WATCH = load(WatchConfig, {})
STEPS = 1500


def falling(noise, seed, level=2.0, tail="normal"):
    """A loss that falls from 9 to `level` with noise of this share of it, and a gradient norm that falls with a warm-up's bump."""
    generator = numpy.random.default_rng(seed)
    draw = generator.standard_normal if tail == "normal" else lambda size: generator.standard_t(4, size)
    step = numpy.arange(STEPS)
    loss = (level + (9 - level) * numpy.exp(-step / 120)) * (1 + noise * draw(STEPS))
    norm = (0.4 + 3 * numpy.exp(-step / 40) + 0.5 * numpy.exp(-(((step - 80) / 30) ** 2))) * numpy.exp(0.3 * draw(STEPS))
    return numpy.maximum(loss, 0.01), norm


def alarms(loss, norm=None):
    """Steps at which something is told."""
    watcher = Divergence()
    norm = numpy.ones(len(loss)) if norm is None else norm
    told = [
        (step, sentence)
        for step, (value, size) in enumerate(zip(loss.tolist(), norm.tolist(), strict=True))
        for sentence in watcher.observe({"step": step, "loss": value, "gradient_norm": size}, WATCH.window, WATCH.deviations)
    ]
    assert watcher.alarms == len(told)
    return told


@pytest.mark.parametrize("tail", ["normal", "heavy"])
@pytest.mark.parametrize("noise", [0.0, 0.005, 0.03, 0.15])
def test_noise_is_no_alarm(noise, tail):
    for seed in range(5):
        assert alarms(*falling(noise, seed, tail=tail)) == []


def test_stairs_down_constant_and_negative_curves_are_no_alarm():
    step = numpy.arange(600)
    assert alarms(6.0 - step // 150) == [] and alarms(numpy.full(600, 2.0)) == [] and alarms(numpy.zeros(600)) == []
    assert alarms(-0.01 * step + 0.02 * numpy.random.default_rng(0).standard_normal(600)) == []


def test_one_hard_batch_is_no_alarm():
    loss, _ = falling(0.02, seed=1)
    loss[700] *= 2
    loss[900] *= 3
    assert alarms(loss) == []


@pytest.mark.parametrize("noise", [0.005, 0.03])
@pytest.mark.parametrize("at", [60, 400, 1200])
def test_a_spike_is_told_once_within_three_steps(at, noise):
    for seed in range(5):
        loss, _ = falling(noise, seed)
        height = 3 if at > 100 else 5  # while the loss still falls by a third in the window, less is not told
        loss[at : at + 40] += height * numpy.exp(-numpy.arange(40) / 15)
        told = alarms(loss)
        assert len(told) == 1 and at < told[0][0] <= at + 3, (seed, told)
        assert "the loss jumped to" in told[0][1] and "learning_rate" in told[0][1]


def test_a_slow_departure_is_told_and_a_loss_that_stays_high_is_not_told_again():
    loss, _ = falling(0.01, seed=0)
    loss[500:] += numpy.minimum(4, numpy.arange(STEPS - 500) * 0.05)  # up by four within eighty steps, for ever
    told = alarms(loss)
    assert 500 < told[0][0] <= 530 and len(told) <= 2


def test_two_episodes_are_told_twice_and_the_gradient_has_its_own():
    loss, norm = falling(0.01, seed=0)
    for at in (400, 400 + 2 * CALM + 10):
        loss[at : at + 5] += 2
    assert [step for step, _ in alarms(loss)] == [401, 401 + 2 * CALM + 10]
    norm[600:604] *= 50
    (_, _), (_, _), (step, sentence) = alarms(loss, norm)
    assert 601 <= step <= 603 and "the gradient norm jumped" in sentence and "clip_norm" in sentence


def test_the_limit_by_hand():
    assert limit([1.0] * (FEWEST - 1), 8, 0.1) is None
    values = [1.0, 2.0, 3.0, 4.0, 5.0] * 4  # both halves: median 3, distances 2 1 0 1 2: median 1
    assert limit(values, 8, 0.1) == pytest.approx(3 + 8 * 1.4826)
    assert limit(values, 0.01, 0.1) == pytest.approx(3.3)
    falls = [40.0 - step for step in range(20)]  # a straight fall: no noise, and the newer half's median is 25.5
    assert limit(falls, 8, 0.1) == pytest.approx(25.5 * 1.1)
    rises = [float(step) for step in range(20)]  # a rise is not taken away: all distances from 9.5, median 5
    assert limit(rises, 8, 0.1) == pytest.approx(14.5 + 8 * 1.4826 * 5)


def test_the_state_goes_through_json():
    loss, _ = falling(0.03, seed=3)
    loss[200:210] += 5
    one = Divergence()
    for step, value in enumerate(loss[:300].tolist()):
        one.observe({"step": step, "loss": value, "gradient_norm": None}, WATCH.window, WATCH.deviations)
        other = Divergence.of(json.loads(json.dumps(dataclasses.asdict(one))))
        assert other == one
        one = other
    assert one.alarms == 1 and "gradient_norm" not in one.courses
    off = Divergence()
    assert off.observe({"step": 1, "loss": 1.0}, 0, 8.0) == [] and not off.courses


def spiking(stop=None):
    """The toy whose loss is three times as large from its 25th batch on for six batches."""
    algorithm = toy_algorithm()
    plain, batches = algorithm.loss, algorithm.batches
    place = {"row": 0}

    def stream(state):
        for number, (batch, after) in enumerate(batches(state)):
            if number == stop:
                raise RuntimeError("power cut")
            place["row"] = after["row"] // 2 + 1000 * after["epoch"]
            yield batch, after

    def loss(batch):
        found = plain(batch)
        return Loss(found.total * (3 if 8 <= place["row"] % 1000 <= 12 and place["row"] > 1000 else 1), found.count)

    algorithm.batches, algorithm.loss = stream, loss
    return algorithm


@pytest.mark.slow
def test_a_run_says_it_counts_it_and_goes_on_to_the_same_log_after_kills(tmp_path, capsys):
    progress.use(progress.Plain())
    config = toy_config(steps=40, checkpoint={"every_steps": 4}, optimizer={"learning_rate": 1e-3}, schedule={"name": "constant"})
    result = fit(spiking(), config, tmp_path / "plain")
    said = [line for line in capsys.readouterr().out.splitlines() if "the loss jumped to" in line]
    assert len(said) == 1 and result.alarms == 1
    rows = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "alarms" in row]
    assert said[0].startswith(f"step {row['step']}: ") and row["alarms"] == 1 and math.isfinite(row["loss"])
    for stop in (7, 14, 5, 3):
        with pytest.raises(RuntimeError):
            fit(spiking(stop), config, tmp_path / "broken")
    again = fit(spiking(), config, tmp_path / "broken")
    assert again.alarms == 1
    assert (tmp_path / "plain" / "metrics.jsonl").read_bytes() == (tmp_path / "broken" / "metrics.jsonl").read_bytes()
    quiet = fit(spiking(), toy_config(**{**config.model_dump(), "watch": {"window": 0}}), tmp_path / "quiet")
    assert quiet.alarms == 0
