"""A checkpoint of any form becomes the model that it was made of."""

import shutil

import pytest
import torch
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core import storage
from luyen.core.errors import DamagedFile, ModelError, UserError
from luyen.engine import checkpoint, export
from luyen.engine.average import followed
from luyen.engine.run import Run
from luyen.engine.trainer import Hooks


def stopped(folder, form, algorithm=None, **values):
    """A run after four steps with its weights then and their average, by name."""
    algorithm = algorithm or toy_algorithm()
    run = Run(algorithm, toy_config(checkpoint={"format": form}, **values), folder, 0, Hooks())
    stream = algorithm.batches(None)
    for _ in range(4):
        run.update(stream)
    run.save()
    run.close()
    averages = followed(run.model, run.optimizers)
    return [{name: tensor.detach().clone() for name, tensor in found.items()} for found in (algorithm.model.state_dict(), averages)]


def same(model, weights):
    return all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_weights_and_average_come_out_to_the_bit(tmp_path, form):
    weights, averages = stopped(tmp_path, form, optimizer={"ema_decay": 0.5})
    folder = tmp_path / "checkpoints" / "step-00000004"
    for path in (tmp_path, folder.parent, folder):
        found = export.find(path)
        assert found.folder == folder
        assert same(export.model_of(found), weights)
    assert same(export.model_of(found, average=True), averages) and not same(export.model_of(found), averages)


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_frozen_weights_come_from_the_base_model(tmp_path, form):
    algorithm = toy_algorithm()
    algorithm.model.model.layers[0].requires_grad_(False)
    weights, _ = stopped(tmp_path, form, algorithm)
    found = export.find(tmp_path)
    with pytest.raises(ModelError, match="does not hold its frozen weights"):
        export.model_of(found)
    with pytest.raises(ModelError, match="was made with other frozen weights"):
        export.model_of(found, toy_model(1))
    assert same(export.model_of(found, toy_model(0)), weights)
    with pytest.raises(ModelError, match="holds no average"):
        export.model_of(found, toy_model(0), average=True)


def test_an_older_checkpoint_needs_a_model_of_its_size(tmp_path):
    weights, _ = stopped(tmp_path, "whole")
    folder = export.find(tmp_path).folder
    state = storage.read_json(folder / "state.json")
    storage.write_json(folder / "state.json", {key: value for key, value in state.items() if key not in ("model", "format")})
    checkpoint.manifest.seal(folder, checkpoint.KIND)
    with pytest.raises(ModelError, match="does not hold the size of its model"):
        export.model_of(export.find(folder))
    with pytest.raises(ModelError, match="is of another model"):
        export.model_of(export.find(folder), toy_model(0, hidden_size=32))
    assert same(export.model_of(export.find(folder), toy_model(1)), weights)


def test_nothing_and_damage_are_told(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        export.find(tmp_path)
    stopped(tmp_path, "sharded")
    folder = export.find(tmp_path).folder
    shutil.rmtree(folder / "model")
    with pytest.raises(DamagedFile, match="is missing"):
        export.find(folder)
    with pytest.raises(UserError, match="no checkpoint in"):
        export.find(tmp_path)
