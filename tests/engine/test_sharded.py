"""Shards of one process: they come back to the bit, damage is found, and what reads whole checkpoints reads them too."""

import json
import shutil

import pytest
import torch
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core import manifest, storage
from luyen.core.errors import DamagedFile, ModelError
from luyen.engine import checkpoint
from luyen.engine.average import average_checkpoints
from luyen.engine.config import OptimizerConfig
from luyen.engine.optim import build
from luyen.engine.trainer import fit

CONFIG = {"steps": 6, "optimizer": {"name": "adafactor", "ema_decay": 0.5}, "checkpoint": {"every_steps": 2, "keep_last": 3}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with whole and with sharded checkpoints."""
    root = tmp_path_factory.mktemp("sharded")
    for form in ("whole", "sharded"):
        fit(toy_algorithm(), toy_config(**{**CONFIG, "checkpoint": {**CONFIG["checkpoint"], "format": form}}), root / form)
    return root


def newest(folder):
    return checkpoint.open_checkpoint(folder / "checkpoints" / "step-00000006")


def test_the_files_are_safetensors_and_json(runs):
    folder = newest(runs / "sharded").folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    shards = {f"{group}/shard-00001-model-00001-of-00001.safetensors" for group in ("model", "optimizer")}
    assert names == {"luyen.json", "state.json", "timing.json", "random.safetensors"} | shards
    assert set(newest(runs / "sharded").state["shards"]) == shards


@pytest.mark.parametrize("left", ["whole", "sharded"])
def test_either_form_goes_on_from_the_other_to_the_same_bits(runs, tmp_path, left):
    folder = tmp_path / "run"
    shutil.copytree(runs / left, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    other = {"whole": "sharded", "sharded": "whole"}[left]
    fit(toy_algorithm(), toy_config(**{**CONFIG, "checkpoint": {**CONFIG["checkpoint"], "format": other}}), folder)
    assert (folder / "metrics.jsonl").read_bytes() == (runs / left / "metrics.jsonl").read_bytes()
    states = []
    for found in (newest(folder), newest(runs / left)):
        model = toy_model()
        optimizers = build(model, OptimizerConfig(name="adafactor", ema_decay=0.5))
        checkpoint.restore(found, model, optimizers)
        states.append({**checkpoint.model_tensors(model), **checkpoint.optimizer_tensors(model, optimizers)})
    assert states[0].keys() == states[1].keys() and len(states[0]) > 40
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_mean_of_checkpoints_does_not_know_their_form(runs):
    folders = {form: [runs / form / "checkpoints" / f"step-0000000{step}" for step in (2, 4, 6)] for form in ("whole", "sharded")}
    whole, sharded, both = (
        average_checkpoints(paths) for paths in (folders["whole"], folders["sharded"], [*folders["whole"][:2], folders["sharded"][2]])
    )
    assert whole.keys() == sharded.keys() == both.keys()
    assert all(torch.equal(whole[name], sharded[name]) and torch.equal(whole[name], both[name]) for name in whole)


def test_every_damage_of_a_shard_is_found(runs, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(newest(runs / "sharded").folder, folder)
    for name in newest(runs / "sharded").state["shards"]:
        content = (folder / name).read_bytes()
        for broken in (b"", content[:-1], content[: len(content) // 2], content[:99] + bytes([content[99] ^ 4]) + content[100:]):
            (folder / name).write_bytes(broken)
            with pytest.raises(DamagedFile, match=name):
                checkpoint.open_checkpoint(folder)
        (folder / name).unlink()
        with pytest.raises(DamagedFile, match="is missing"):
            checkpoint.open_checkpoint(folder)
        (folder / name).write_bytes(content)
    checkpoint.open_checkpoint(folder)


def test_a_shard_too_few_or_a_file_too_many_in_the_manifest_is_damage(runs, tmp_path):
    for change in ("too few", "too many", "foreign"):
        folder = tmp_path / change
        shutil.copytree(newest(runs / "sharded").folder, folder)
        shard = next((folder / "optimizer").iterdir())
        if change == "too few":
            shard.unlink()
        elif change == "too many":
            shutil.copy(shard, shard.with_name("shard-00002-model-00001-of-00001.safetensors"))
        else:
            (folder / "optimizer" / ".metadata").write_bytes(b"cos\nsystem\n")
        manifest.seal(folder, checkpoint.KIND)
        with pytest.raises(DamagedFile, match=r"luyen\.json: (lists other shards|is not that of a checkpoint)"):
            checkpoint.open_checkpoint(folder)


def test_what_the_manifest_does_not_list_is_never_read(runs, tmp_path):
    for name in ("shard-00002-model-00001-of-00001.safetensors", ".metadata"):
        folder = tmp_path / name
        shutil.copytree(newest(runs / "sharded").folder, folder)
        shutil.copy(next((folder / "model").iterdir()), folder / "model" / name)
        with pytest.raises(DamagedFile, match=f"{name}: is not in the manifest"):
            checkpoint.open_checkpoint(folder)


def test_another_model_is_refused_and_left_alone(runs):
    other = toy_model(1, hidden_size=32)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ModelError, match=r"of another model: model\.embed_tokens\.weight; found \(48, 16\); expected \(48, 32\)"):
        checkpoint.restore(newest(runs / "sharded"), other, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_a_newer_format_is_refused_and_not_passed_over(runs, tmp_path, form):
    """Also where its files are others: an older code must not train anew from an earlier checkpoint, or from nothing."""
    folder = tmp_path / form
    shutil.copytree(runs / form, folder)
    last = folder / "checkpoints" / "step-00000006"
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    storage.write_json(last / "state.json", {**state, "format": checkpoint.FORMAT + 1})
    (last / "what-is-this.safetensors").write_bytes(b"new")
    manifest.seal(last, checkpoint.KIND)
    with pytest.raises(ModelError, match=rf"is of a newer format; found {checkpoint.FORMAT + 1}; expected at most {checkpoint.FORMAT}"):
        fit(toy_algorithm(), toy_config(**CONFIG), folder)
