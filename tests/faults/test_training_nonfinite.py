"""NaN or infinity in a loss, a gradient or the weights stops before the update and names step and samples."""

import json

import pytest
import torch
from training_toys import toy_algorithm, toy_config

from luyen.core.errors import NonFinite
from luyen.engine.checkpoint import model_tensors, newest_valid, optimizer_tensors
from luyen.engine.run import Run
from luyen.engine.trainer import Hooks, fit
from luyen.objectives.loss import Loss

BAD_STEP = 3


def poisoned(where, value):
    """The toy algorithm whose third batch goes wrong."""
    algorithm = toy_algorithm()
    plain, calls = algorithm.loss, []

    def loss(batch):
        calls.append(batch.sample_ids)
        found = plain(batch)
        if len(calls) != BAD_STEP:
            return found
        if where == "loss":
            return Loss(found.total * value, found.count)
        # The loss stays finite, one gradient does not: the square root's slope at 0 is infinite.
        weight = algorithm.model.model.norm.weight
        return Loss(found.total + value * (weight[0] - weight[0].detach()).abs().sqrt(), found.count)

    algorithm.loss = loss
    return algorithm, calls


def copies(run_or_algorithm, optimizers):
    tensors = {**model_tensors(run_or_algorithm), **optimizer_tensors(run_or_algorithm, optimizers)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("where", "value"), [("loss", float("nan")), ("loss", float("inf")), ("gradient", 1.0)])
def test_stops_before_the_update(tmp_path, where, value, optimizer):
    algorithm, calls = poisoned(where, value)
    run = Run(algorithm, toy_config(optimizer={"name": optimizer}), tmp_path, 0, Hooks())
    stream = algorithm.batches(None)
    for _ in range(BAD_STEP - 1):
        run.update(stream)
    before = copies(run.model, run.optimizers)
    with pytest.raises(NonFinite) as caught:
        run.update(stream)
    run.close()
    assert all(torch.equal(before[name], tensor) for name, tensor in copies(run.model, run.optimizers).items())
    message = str(caught.value)
    assert f"step {BAD_STEP}: " in message and calls[-1][0] in message
    assert ("loss is" if where == "loss" else "gradient of model.norm.weight") in message
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == BAD_STEP and tuple(row["sample_ids"]) == calls[-1]
    assert not all(torch.isfinite(torch.tensor([float(row["loss"]), float(row["gradient_norm"])])))


def test_the_last_checkpoint_is_finite_and_the_run_goes_on_from_it(tmp_path):
    algorithm, _ = poisoned("loss", float("nan"))
    config = toy_config(checkpoint={"every_steps": 2})
    with pytest.raises(NonFinite, match="the checkpoint of step 2 is intact"):
        fit(algorithm, config, tmp_path)
    kept = newest_valid(tmp_path / "checkpoints")
    assert kept.state["step"] == 2
    fit(toy_algorithm(), config, tmp_path)  # the same data without the fault
    fit(toy_algorithm(), config, tmp_path / "plain")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()


def test_a_weight_that_is_not_a_number(tmp_path):
    algorithm = toy_algorithm()
    with torch.no_grad():
        algorithm.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="step 1: the loss is nan.*nothing was saved yet"):
        fit(algorithm, toy_config(), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_fp16_lowers_its_scale_before_it_gives_up(tmp_path):
    algorithm = toy_algorithm()
    plain = algorithm.loss
    norm = algorithm.model.model.norm.weight
    algorithm.loss = lambda batch: Loss(plain(batch).total + (norm[0] - norm[0].detach()).abs().sqrt(), batch.num_targets)
    with pytest.raises(NonFinite, match=r"gradient of model\.norm\.weight"):
        fit(algorithm, toy_config(steps=100, precision="fp16"), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_scale"] for row in rows[:-1]] == [2.0**power for power in range(15, -15, -1)]
