"""The learning-rate test finds the fall and the break, and leaves no trace in what it was given."""

import math

import pytest
import torch
from training_toys import toy_algorithm, toy_config

from luyen.core import interrupt
from luyen.core.errors import ConfigError, Interrupted, NonFinite
from luyen.core.random_state import random_state
from luyen.engine import rate_finder
from luyen.engine.trainer import fit
from luyen.objectives.loss import Loss


def everything(algorithm):
    """All that the test must leave as it was."""
    model = algorithm.model
    tensors = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    return tensors, {name: tensor.clone() for name, tensor in random_state().items()}, [module.training for module in model.modules()]


def assert_same(left, right):
    assert all(torch.equal(one, other) for one, other in zip(left[0], right[0], strict=True))
    assert left[1].keys() == right[1].keys() and all(torch.equal(left[1][name], right[1][name]) for name in left[1])
    assert left[2] == right[2]


def test_it_finds_where_the_loss_falls_and_where_it_breaks():
    """The toy's best rates for AdamW are around 1e-2; 10 breaks it."""
    algorithm = toy_algorithm()
    curve = rate_finder.find(algorithm, toy_config(), smallest=1e-6, largest=100.0, steps=80)
    assert 1e-4 < curve.suggestion < curve.lowest < 1.0
    assert len(curve.rates) == len(curve.losses) <= 79
    assert curve.rates[0] == pytest.approx(1e-6)
    ratios = [after / before for before, after in zip(curve.rates, curve.rates[1:], strict=False)]
    assert ratios == pytest.approx([1e8 ** (1 / 79)] * len(ratios))


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_it_leaves_everything_as_it_was(tmp_path, name):
    algorithm = toy_algorithm()
    algorithm.model.eval()
    algorithm.model.model.layers[0].train()
    gradient = torch.ones_like(algorithm.model.model.embed_tokens.weight)
    algorithm.model.model.embed_tokens.weight.grad = gradient
    config = toy_config(optimizer={"name": name}, accumulation=2, activations="full")
    before = everything(algorithm)
    rate_finder.find(algorithm, config, steps=10)
    assert_same(before, everything(algorithm))
    assert algorithm.model.model.embed_tokens.weight.grad is gradient
    assert algorithm.model.model.layers[0].mlp.up_proj.weight.grad is None
    algorithm.model.zero_grad()
    fit(algorithm, config, tmp_path / "after")
    fit(toy_algorithm(), config, tmp_path / "plain")
    assert (tmp_path / "after" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()


def test_the_losses_are_those_after_each_update():
    algorithm = toy_algorithm()
    curve = rate_finder.find(algorithm, toy_config(), smallest=1e-12, largest=1.1e-12, steps=5)
    batches = [batch for batch, _ in zip(algorithm.batches(None), range(5), strict=False)]
    untouched = [algorithm.loss(batch).total.item() / batch.num_targets for batch, _ in batches]
    assert curve.losses == pytest.approx(untouched[1:], rel=1e-5)


def test_a_loss_that_is_not_finite_ends_it_and_a_first_one_is_told():
    algorithm = toy_algorithm()
    plain, calls = algorithm.loss, []

    def loss(batch, after=6):
        calls.append(1)
        found = plain(batch)
        return Loss(found.total * (math.nan if len(calls) > after else 1.0), found.count)

    algorithm.loss = loss
    before = everything(algorithm)
    curve = rate_finder.find(algorithm, toy_config(), steps=10)
    assert len(curve.rates) == len(curve.losses) == 5
    assert curve.broken == pytest.approx(1e-6 * 10 ** (6 * 5 / 9)), "the sixth update, after which the seventh loss was not finite"
    with pytest.raises(NonFinite):
        rate_finder.find(algorithm, toy_config(), steps=10)
    assert_same(before, everything(algorithm))


def test_the_rate_that_broke_the_loss_is_named_and_none_where_it_held():
    algorithm = toy_algorithm()
    plain, calls = algorithm.loss, []

    def loss(batch):
        calls.append(1)
        found = plain(batch)
        return Loss(found.total * (10.0 if len(calls) == 8 else 1.0), found.count)

    algorithm.loss = loss
    curve = rate_finder.find(algorithm, toy_config(), largest=1e-3, steps=10)
    assert len(curve.losses) == 7 and curve.broken == curve.rates[-1] == pytest.approx(1e-6 * 1000 ** (6 / 9))
    calls.extend([1] * 10)
    held = rate_finder.find(algorithm, toy_config(), largest=1e-3, steps=10)
    assert held.broken is None and len(held.averaged) == len(held.losses) == 9


def test_a_signal_stops_it_and_the_weights_are_back():
    algorithm = toy_algorithm()
    plain = algorithm.loss
    before = everything(algorithm)
    with interrupt.listening(), pytest.raises(Interrupted):
        algorithm.loss = lambda batch: (interrupt._handle(15, None), plain(batch))[1]
        rate_finder.find(algorithm, toy_config(), steps=10)
    assert_same(before, everything(algorithm))


def test_the_steepest_fall_by_hand():
    rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    curve = rate_finder.judge(rates, [5.0, 4.5, 3.0, 2.9, 9.0], 0)
    assert (curve.suggestion, curve.lowest) == (1e-3, 1e-1)
    smoothed = rate_finder.judge(rates, [5.0, 4.5, 3.0, 2.9, 9.0], 1)  # 4.75, 4.17, 3.47, 4.97, 5.95
    assert (smoothed.suggestion, smoothed.lowest) == (1e-3, 1e-2)
    assert rate_finder.judge(rates, [1.0, 2.0, 3.0, 4.0, 5.0], 0).suggestion is None


@pytest.mark.parametrize(
    "values, message",
    [({"smallest": 1.0, "largest": 0.1}, "a rise from above 0"), ({"smallest": 0.0}, "a rise from above 0"), ({"steps": 4}, "at least 5")],
)
def test_what_cannot_be_tried_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        rate_finder.find(toy_algorithm(), toy_config(), **values)
