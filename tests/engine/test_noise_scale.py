"""The gradient noise scale by hand, on a quadratic where it is known, and in the log of a run."""

import json

import pytest
import torch
from torch import nn
from training_toys import toy_algorithm, toy_config

from luyen.core import interrupt
from luyen.core.errors import Interrupted
from luyen.engine import noise_scale
from luyen.engine.trainer import fit


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_norms_give_both_parts_back():
    """|G|^2 = 3 and S = 20 make 3 + 20 / 4 = 8 over 4 items and 3 + 20 / 10 = 5 over 10."""
    assert noise_scale.parts(4, 8**0.5, 10, 5**0.5) == pytest.approx((20.0, 3.0))


def test_the_running_sums_weigh_both_parts_alike():
    sums = noise_scale.follow({}, 20.0, 2.0)
    assert noise_scale.scale(sums) == pytest.approx(10.0)
    sums = noise_scale.follow(sums, 10.0, 3.0)
    assert noise_scale.scale(sums) == pytest.approx((0.99 * 20 + 10) / (0.99 * 2 + 3))
    assert noise_scale.scale({}) is None
    assert noise_scale.scale({"spread": 1.0, "square": -0.1}) is None and noise_scale.scale({"spread": -1.0, "square": 1.0}) is None


def test_it_is_found_on_a_quadratic():
    """Loss (w - x)^2 / 2 with x around m: the true gradient is w - m, the items' variance that of x, so the scale is known: 12 / 4."""
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))])
    sums, told = {}, []
    for _ in range(2000):
        meter = noise_scale.Meter(16)
        model[0].grad = None
        for items in (4, 12):
            x = 2.0 * torch.randn(items, 3, generator=generator)
            ((model[0] - x).square().sum() / 2 * 1024 / 16).backward()
            meter.see(model, items)
        told.append(meter.tell(sums, (model[0].grad / 1024).norm().item(), 1024.0)["noise_scale"])
    assert told[-1] == pytest.approx(3.0, rel=0.3)
    known = [value for value in told[200:] if value is not None]
    assert len(known) > 1700 and sum(known) / len(known) == pytest.approx(3.0, rel=0.1)


def test_it_is_logged_when_a_step_has_several_micro_batches(tmp_path):
    fit(toy_algorithm(rows=1), toy_config(accumulation=3), tmp_path / "three")
    assert all("noise_scale" in row for row in rows(tmp_path / "three"))
    assert any(row["noise_scale"] for row in rows(tmp_path / "three"))
    fit(toy_algorithm(), toy_config(), tmp_path / "one")
    assert not any("noise_scale" in row for row in rows(tmp_path / "one"))


def test_a_skipped_update_says_nothing_and_a_stop_changes_nothing(tmp_path):
    config = toy_config(accumulation=2)
    fit(toy_algorithm(rows=1), config, tmp_path / "whole")
    algorithm = toy_algorithm(rows=1)
    plain, calls = algorithm.loss, []

    def loss(batch):
        calls.append(1)
        if len(calls) == 7:
            interrupt._handle(15, None)
        return plain(batch)

    algorithm.loss = loss
    with interrupt.listening(), pytest.raises(Interrupted):
        fit(algorithm, config, tmp_path / "parts")
    fit(toy_algorithm(rows=1), config, tmp_path / "parts")
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    overflowing = toy_algorithm(rows=1)
    plain_loss = overflowing.loss
    overflowing.loss = lambda batch: (lambda found: type(found)(found.total * 1e34, found.count))(plain_loss(batch))
    fit(overflowing, toy_config(accumulation=2, steps=2, precision="fp16"), tmp_path / "overflow")
    assert not any("noise_scale" in row for row in rows(tmp_path / "overflow"))
