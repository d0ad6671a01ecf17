"""Averages of weights against their formulas; in a run only evaluations and the end see them, and a stop changes no bit."""

import json

import pytest
import torch
from torch import nn
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core import interrupt, progress
from luyen.core.config import load
from luyen.core.errors import ConfigError, DamagedFile, Interrupted, ModelError
from luyen.engine import checkpoint
from luyen.engine.average import average_checkpoints, followed
from luyen.engine.config import OptimizerConfig, TrainConfig
from luyen.engine.optim import build
from luyen.engine.trainer import Hooks, fit

NAMES = ["adamw", "adamw8bit", "muon", "adafactor", "lion", "sgd"]


def weights(model):
    return {name: tensor.clone() for name, tensor in checkpoint.model_tensors(model).items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", NAMES)
def test_the_followed_average_is_the_weighted_mean_after_each_update(name):
    model = toy_model()
    optimizers = build(model, OptimizerConfig(name=name, learning_rate=0.1, ema_decay=0.75))
    seen = []
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
        seen.append(weights(model))
    averages = followed(model, optimizers)
    assert averages.keys() == seen[0].keys()
    for key, average in averages.items():
        expected = sum(0.75 ** (2 - n) * seen[n][key].double() for n in range(3)) / (1 + 0.75 + 0.75**2)
        torch.testing.assert_close(average, expected.float(), rtol=1e-5, atol=1e-6)


def test_a_weight_without_gradient_has_no_average_before_its_first():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    optimizers = build(model, OptimizerConfig(ema_decay=0.5))
    model[0].weight.grad = torch.ones(2, 2)
    optimizers[0].step()
    assert set(followed(model, optimizers)) == {"0.weight"}
    model[1].weight.grad = torch.ones(2, 2)
    optimizers[0].step()
    assert torch.equal(followed(model, optimizers)["1.weight"], model[1].weight)


def run(folder, stops=(), seen=None, **values):
    """A toy run, interrupted in the given steps of its parts. Returns its model and result."""
    for stop in (*stops, None):
        algorithm = toy_algorithm()
        plain, calls = algorithm.loss, []

        def loss(batch, plain=plain, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                interrupt._handle(15, None)
            return plain(batch)

        def evaluate(model=algorithm.model):
            if seen is not None:
                seen.append(weights(model))
            return {"sum": sum(tensor.double().sum().item() for tensor in checkpoint.model_tensors(model).values())}

        algorithm.loss = loss
        hooks = Hooks(evaluate=evaluate)
        if stop is None:
            return algorithm.model, fit(algorithm, toy_config(**values), folder, hooks=hooks)
        with interrupt.listening(), pytest.raises(Interrupted):
            fit(algorithm, toy_config(**values), folder, hooks=hooks)
    return None


AVERAGED = [
    {"optimizer": {"learning_rate": 1e-2, "ema_decay": 0.5}, "checkpoint": {"every_steps": 2}},
    {"checkpoint": {"every_steps": 2, "average_last": 3, "keep_last": 1}},
]


@pytest.mark.parametrize("values", AVERAGED, ids=["followed", "checkpoints"])
def test_training_goes_on_from_the_last_weights_and_evaluations_see_the_average(tmp_path, values):
    seen = []
    plain, plain_result = run(tmp_path / "plain", seen=seen, checkpoint={"every_steps": 2})
    averaged, result = run(tmp_path / "averaged", seen=seen, **values)
    assert result.loss == plain_result.loss
    newest = checkpoint.newest_valid(tmp_path / "averaged" / "checkpoints")
    model = toy_model()
    checkpoint.restore(newest, model, [])
    assert equal(weights(model), weights(plain)), "the checkpoint holds the last weights"
    assert not equal(weights(averaged), weights(plain)) and equal(seen[-1], weights(averaged))
    assert result.evaluation["sum"] == pytest.approx(sum(tensor.double().sum().item() for tensor in weights(averaged).values()), rel=1e-9)
    assert equal(seen[0], seen[2]) and not equal(seen[1], seen[3])


@pytest.mark.parametrize("values", AVERAGED, ids=["followed", "checkpoints"])
def test_stopping_and_continuing_ends_in_the_same_bits(tmp_path, values):
    """The second stop is between two checkpoints that the mean needs: the one that it leaves is none of them."""
    whole, _ = run(tmp_path / "whole", evaluate_every=3, **values)
    parts, result = run(tmp_path / "parts", stops=(2, 4, 2), evaluate_every=3, **values)
    assert equal(weights(whole), weights(parts))
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    again, same = run(tmp_path / "parts", evaluate_every=3, **values)  # a finished run is not done again
    assert equal(weights(again), weights(whole)) and (same.loss, same.evaluation) == (result.loss, result.evaluation)


def test_the_end_is_the_mean_of_the_last_scheduled_checkpoints(tmp_path, capsys):
    progress.use(progress.Plain())
    keep_all, _ = run(tmp_path / "all", checkpoint={"every_steps": 3, "keep_last": 9}, steps=8)
    model, _ = run(tmp_path / "mean", stops=(7,), checkpoint={"every_steps": 3, "average_last": 3, "keep_last": 1}, steps=8)
    assert "the model is the mean of its weights after steps 3, 6, 8" in capsys.readouterr().out
    folders = [tmp_path / "all" / "checkpoints" / f"step-0000000{step}" for step in (3, 6, 8)]
    mean = average_checkpoints(folders)
    assert equal(mean, weights(model))
    for name, tensor in mean.items():
        members = []
        for folder in folders:
            other = toy_model()
            checkpoint.restore(checkpoint.open_checkpoint(folder), other, [])
            members.append(weights(other)[name].double())
        assert torch.equal(tensor, (sum(members) / 3).float())
    assert not equal(mean, weights(keep_all))


def test_a_checkpoint_that_the_mean_needs_and_is_gone_is_named(tmp_path):
    values = {"checkpoint": {"every_steps": 2, "average_last": 3}}
    run(tmp_path, **values)
    (tmp_path / "checkpoints" / "step-00000006" / "model.safetensors").unlink()
    with pytest.raises(DamagedFile, match=r"step-00000006/model\.safetensors: is missing, and checkpoint\.average_last=3 needs it"):
        run(tmp_path, **values)


def test_a_mean_over_other_checkpoints_than_were_made_is_refused_and_none_is_possible(tmp_path):
    run(tmp_path, checkpoint={"every_steps": 2, "average_last": 2})
    with pytest.raises(DamagedFile, match=r"step-00000007/luyen\.json: is missing"):
        run(tmp_path, checkpoint={"every_steps": 7, "average_last": 2})
    last, _ = run(tmp_path, checkpoint={"every_steps": 7})
    plain, _ = run(tmp_path / "plain")
    assert equal(weights(last), weights(plain))


def test_checkpoints_of_different_models_have_no_mean(tmp_path):
    folders = []
    for number, model in enumerate((toy_model(tied=False), toy_model(tied=True))):
        folders.append(checkpoint.save(tmp_path / str(number), model, [], {"step": 1}, {}))
    with pytest.raises(ModelError, match=r"not of one model; found lm_head\.weight in one of them only"):
        average_checkpoints(folders)
    with pytest.raises(ModelError, match="at least one folder"):
        average_checkpoints([])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"optimizer": {"ema_decay": 0.9}, "checkpoint": {"every_steps": 1, "average_last": 2}}, "are two averages; take one"),
        ({"checkpoint": {"every_steps": 5, "average_last": 3}}, "needs more checkpoints than every_steps 5 makes in 10 steps"),
        ({"checkpoint": {"every_steps": 1, "average_last": 2}, "watch": {"patience": 1}}, "judges the weights at each evaluation"),
    ],
)
def test_averages_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, {"steps": 10, **values})


def test_evaluations_are_logged_for_the_average(tmp_path):
    seen = []
    run(tmp_path, seen=seen, evaluate_every=4, optimizer={"learning_rate": 1e-2, "ema_decay": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    sums = [row["sum"] for row in rows if "sum" in row]
    assert sums == [sum(tensor.double().sum().item() for tensor in one.values()) for one in seen] and len(sums) == 3
