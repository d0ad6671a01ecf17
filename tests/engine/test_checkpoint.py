"""Checkpoints come back to the bit, only valid ones are used, and the newest valid one is never deleted."""

import os
import random
import shutil
from itertools import islice

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core import progress
from luyen.core.errors import DamagedFile, ModelError
from luyen.engine import checkpoint
from luyen.engine.config import OptimizerConfig
from luyen.engine.optim import build
from luyen.engine.trainer import fit

TIMING = {"seconds": 1.5, "joules": None, "logs": {"timings": 0}}


def trained(seed=0, name="muon", **changes):
    """A toy model after two updates with made-up gradients, and its optimizers."""
    model = toy_model(seed, **changes)
    optimizers = build(model, OptimizerConfig(name=name))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
    return model, optimizers


def write(root, *steps):
    model, optimizers = trained()
    for step in steps:
        checkpoint.save(root, model, optimizers, {"step": step}, TIMING)


def steps_in(root):
    return sorted(int(path.name[5:]) for path in root.iterdir() if path.name.startswith("step-"))


def damage(folder, name="model.safetensors"):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_everything_comes_back_to_the_bit(tmp_path, name):
    model, optimizers = trained(name=name, tied=False)
    torch.rand(3), numpy.random.random(), random.gauss(0, 1)
    checkpoint.save(tmp_path, model, optimizers, {"step": 7, "x": [1]}, TIMING)
    drawn = torch.rand(3), numpy.random.random(), random.gauss(0, 1)
    other, others = toy_model(5, tied=False), None
    others = build(other, OptimizerConfig(name=name))
    found = checkpoint.newest_valid(tmp_path)
    assert found.state == {"step": 7, "x": [1], "format": checkpoint.FORMAT} and found.timing == TIMING
    checkpoint.restore(found, other, others)
    assert torch.equal(torch.rand(3), drawn[0]) and (numpy.random.random(), random.gauss(0, 1)) == drawn[1:]
    for before, after in [
        (checkpoint.model_tensors(model), checkpoint.model_tensors(other)),
        (checkpoint.optimizer_tensors(model, optimizers), checkpoint.optimizer_tensors(other, others)),
    ]:
        assert before.keys() == after.keys() and len(before) > 5
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_tied_head_is_stored_once_and_equal_runs_give_equal_bytes(tmp_path):
    hashes = []
    for root in (tmp_path / "a", tmp_path / "b"):
        torch.manual_seed(3)
        model, optimizers = trained(tied=True)
        folder = checkpoint.save(root, model, optimizers, {"step": 1}, TIMING)
        assert "lm_head.weight" not in checkpoint.model_tensors(model)
        hashes.append(checkpoint.manifest.verify(folder)["files"])
    assert hashes[0] == hashes[1]


def test_retention_keeps_the_last_and_counts_only_valid_ones(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    checkpoint.retain(tmp_path, 2)
    assert steps_in(tmp_path) == [3, 4]


def test_retention_never_deletes_the_newest_valid_one(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    damage(tmp_path / "step-00000004")
    damage(tmp_path / "step-00000003")
    checkpoint.retain(tmp_path, 1)
    assert steps_in(tmp_path) == [2, 3, 4]
    assert checkpoint.newest_valid(tmp_path).state["step"] == 2


def test_damaged_ones_are_named_and_the_one_before_is_used(tmp_path, capsys):
    progress.use(progress.Plain())
    write(tmp_path, 1, 2, 3)
    damage(tmp_path / "step-00000003", "random.safetensors")
    (tmp_path / "step-00000002" / "optimizer.safetensors").unlink()
    assert checkpoint.newest_valid(tmp_path).state["step"] == 1
    told = capsys.readouterr().out
    assert "step-00000003/random.safetensors: does not have the sha256" in told
    assert "step-00000002/optimizer.safetensors: is missing" in told


def test_a_file_too_few_in_the_manifest_is_damage(tmp_path):
    write(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    (folder / "optimizer.safetensors").unlink()
    checkpoint.manifest.seal(folder, checkpoint.KIND)
    with pytest.raises(DamagedFile, match=r"luyen\.json: is not that of a checkpoint"):
        checkpoint.open_checkpoint(folder)


def test_another_model_is_refused_and_left_alone(tmp_path):
    write(tmp_path, 1)
    other = toy_model(1, hidden_size=32)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ModelError, match=r"of another model: model\.embed_tokens\.weight; found \(48, 16\); expected \(48, 32\)"):
        checkpoint.restore(checkpoint.newest_valid(tmp_path), other, build(other, OptimizerConfig(name="muon")))
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_leftovers_are_cleaned_and_other_folders_left(tmp_path):
    write(tmp_path, 1)
    for name in (".tmp-new-99-0-step-00000002", ".tmp-old-99-0-step-00000001", ".tmp-retired-step-00000000", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    checkpoint.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-00000001"]
    assert checkpoint.newest_valid(tmp_path).state["step"] == 1


def test_a_checkpoint_whose_replacement_was_cut_is_found_again(tmp_path):
    write(tmp_path, 1, 2)
    for step, use in ((1, lambda folder: checkpoint.open_checkpoint(folder)), (2, lambda folder: checkpoint.clean(folder.parent))):
        folder = tmp_path / f"step-{step:08d}"
        folder.rename(tmp_path / f".tmp-old-4194304-0-{folder.name}")
        use(folder)
        assert checkpoint.open_checkpoint(folder).state["step"] == step


def test_a_deletion_cut_in_the_middle_leaves_nothing_that_looks_damaged(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)

    def cut(folder, **_):
        next(path for path in folder.iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.retain(tmp_path, 1)
    assert steps_in(tmp_path) == [2]


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.newest_valid(tmp_path / "nowhere") is None
    (tmp_path / "step-00000009").mkdir()
    assert checkpoint.newest_valid(tmp_path) is None


def frozen_model(seed=0):
    """The toy model of which only the last layer and the norm are trained."""
    model = toy_model(seed, tied=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("model.layers.1.", "model.norm")))
    return model


def test_frozen_weights_are_not_stored_but_must_be_the_same_when_going_on(tmp_path):
    model = frozen_model()
    optimizers = build(model, OptimizerConfig(name="adamw"))
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    folder = checkpoint.save(tmp_path, model, optimizers, {"step": 1}, TIMING)
    assert set(load_file(folder / "model.safetensors")) == trained_names and len(trained_names) < len(list(model.parameters()))
    found = checkpoint.newest_valid(tmp_path)
    assert found.state["frozen"] == checkpoint.frozen_fingerprint(model) != checkpoint.frozen_fingerprint(frozen_model(1))
    again = frozen_model()
    with torch.no_grad():
        for name in trained_names:
            again.get_parameter(name).zero_()
    checkpoint.restore(found, again, build(again, OptimizerConfig(name="adamw")))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in again.state_dict().items())
    other = frozen_model(1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ModelError, match="was made with other frozen weights"):
        checkpoint.restore(found, other, build(other, OptimizerConfig(name="adamw")))
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(ModelError, match=r"of another model: lm_head\.weight; found nothing"):
        checkpoint.restore(found, toy_model(0, tied=False), [])


def test_the_fingerprint_of_frozen_weights_sees_names_types_and_bits():
    def fingerprint(**tensors):
        holder = nn.Module()
        for name, tensor in tensors.items():
            holder.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        return checkpoint.frozen_fingerprint(holder)

    ones = torch.ones(2, 2)
    different = [
        fingerprint(a=ones), fingerprint(b=ones), fingerprint(a=ones.bfloat16()), fingerprint(a=ones.reshape(4)), fingerprint(a=-ones),
        fingerprint(a=ones, b=ones), fingerprint(a=torch.ones(())),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert fingerprint(b=ones, a=ones) == fingerprint(a=ones.T.clone().T, b=ones)
    assert checkpoint.frozen_fingerprint(toy_model()) is None


def test_the_whole_run_goes_on_over_frozen_weights(tmp_path, monkeypatch):
    """Hashed once a run, however many checkpoints there are; and full fine-tuning's state names no frozen weights."""
    made = []
    plain = checkpoint.frozen_fingerprint
    monkeypatch.setattr(checkpoint, "frozen_fingerprint", lambda model: made.append(1) or plain(model))
    results = []
    for name, parts in (("whole", [8]), ("parts", [4, 8])):
        for steps in parts:
            algorithm = toy_algorithm()
            for layer in algorithm.model.model.layers[:1]:
                layer.requires_grad_(False)
            if steps == 4:
                algorithm.batches = lambda state, batches=algorithm.batches: islice(batches(state), 5)
                with pytest.raises(StopIteration):
                    fit(algorithm, toy_config(checkpoint={"every_steps": 2}), tmp_path / name)
            else:
                fit(algorithm, toy_config(checkpoint={"every_steps": 2}), tmp_path / name)
        results.append(algorithm.model.state_dict())
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())
    assert len(made) == 3
    fit(toy_algorithm(), toy_config(), tmp_path / "full")
    assert "frozen" not in checkpoint.newest_valid(tmp_path / "full" / "checkpoints").state
