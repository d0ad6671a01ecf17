"""Hugging Face folders: out to transformers and back, shards, and everything that must be refused in one line."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from toys import IDS, toy, twin
from transformers import AutoModelForCausalLM

from luyen.core import manifest
from luyen.core.errors import DamagedFile, ModelError
from luyen.models import hf
from luyen.models.transformer import Transformer


def saved(folder: Path, **changes) -> Transformer:
    folder.mkdir(parents=True, exist_ok=True)
    model = toy(num_kv_heads=2, **changes)
    hf.save(model, folder, bos_id=1, stop_ids=(2, 3), pad_id=0, sampling={"do_sample": False})
    return model


def edit(folder: Path, **changes) -> None:
    """Change config.json; None removes a key."""
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("changes", [{"tied": True}, {"tied": False, "head_dim": 6, "rope_theta": 777.0, "norm_eps": 1e-3}])
def test_transformers_loads_what_we_save_and_we_what_it_saves(tmp_path, changes) -> None:
    model = saved(tmp_path / "mô hình", **changes)
    theirs, account = AutoModelForCausalLM.from_pretrained(tmp_path / "mô hình", output_loading_info=True)
    assert not account["missing_keys"] and not account["unexpected_keys"] and not account["mismatched_keys"]
    torch.testing.assert_close(model.logits(model(IDS)), theirs(IDS).logits)
    assert theirs.generation_config.eos_token_id == [2, 3] and theirs.generation_config.pad_token_id == 0
    assert theirs.config.max_position_embeddings == model.config.context_length
    theirs.save_pretrained(tmp_path / "back", max_shard_size="200KB")
    back = hf.load(tmp_path / "back")
    assert back.config == model.config
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    for (name, ours), (back_name, again) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == back_name and torch.equal(ours, again)
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_an_old_folder_is_read(tmp_path) -> None:
    """transformers 4's layout: rope_theta at the top, defaults left out, rotary tables and the tied head in the file."""
    model = saved(tmp_path, norm_eps=1e-6, context_length=2048)
    edit(tmp_path, rope_parameters=None, rms_norm_eps=None, max_position_embeddings=None, head_dim=None, rope_scaling={"type": "default"})
    tensors = load_file(tmp_path / hf.WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / hf.WEIGHTS)
    again = hf.load(tmp_path)
    assert again.config == model.config
    torch.testing.assert_close(again(IDS), model(IDS), rtol=0, atol=0)
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / hf.WEIGHTS)
    with pytest.raises(ModelError, match="lm_head.weight differs"):
        hf.load(tmp_path)


def test_number_format_and_the_same_bytes(tmp_path) -> None:
    model = saved(tmp_path / "one")
    saved(tmp_path / "two")
    for name in ("config.json", hf.WEIGHTS, "generation_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    half = hf.load(tmp_path / "one", dtype=torch.bfloat16)
    assert half.head_weight.dtype == torch.bfloat16
    torch.testing.assert_close(half(IDS).float(), model(IDS), rtol=0.1, atol=0.1)
    assert json.loads((tmp_path / "one" / "config.json").read_text())["dtype"] == "float32"


def test_a_stage_folder_finds_its_model_and_damage_is_named(tmp_path) -> None:
    saved(tmp_path / "stage" / "model")
    manifest.seal(tmp_path / "stage" / "model", "model")
    hf.load(tmp_path / "stage")
    weights = tmp_path / "stage" / "model" / hf.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        hf.load(tmp_path / "stage")


def test_a_model_whose_replacement_was_cut_is_found_again(tmp_path) -> None:
    saved(tmp_path / "stage" / "model")
    (tmp_path / "stage" / "model").rename(tmp_path / "stage" / ".tmp-old-4194304-0-model")
    hf.load(tmp_path / "stage")
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["model"]


def test_a_model_without_a_manifest_of_its_own_is_checked_against_its_stage(tmp_path) -> None:
    saved(tmp_path / "stage" / "model")
    manifest.seal(tmp_path / "stage", "pretrain")
    hf.load(tmp_path / "stage")
    (tmp_path / "stage" / "model" / "generation_config.json").write_text("{}")
    with pytest.raises(DamagedFile, match=r"generation_config\.json"):
        hf.load(tmp_path / "stage" / "model")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gemma"}, "model_type; found 'gemma'; expected 'llama' or 'mistral'"),
        ({"attention_bias": True}, "attention_bias is not supported; found True"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "auto_map"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
            "rope_scaling is not supported; found 'yarn'; expected 'default' or 'linear'",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling lacks the key 'low_freq_factor' of llama3"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2}}, "unknown key 'factor'"),
        ({"atention_bias": False}, r"unknown key 'atention_bias'; found False. Did you mean 'attention_bias'\?"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"hidden_size": "wide"}, "hidden_size; found 'wide'"),
        ({"hidden_size": 64, "head_dim": None}, "does not fit config.json; found"),
        ({"num_hidden_layers": 3}, "lacks tensor model.layers.2"),
        ({"num_hidden_layers": 1}, "has the unknown tensor model.layers.1"),
        ({"vocab_size": 9999}, r"embed_tokens.weight does not fit config.json; found \(10000, 32\); expected \(9999, 32\)"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(tmp_path, changes, told) -> None:
    saved(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ModelError, match=told) as caught:
        hf.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_model(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"is not a model; found notes\.txt; expected a folder with config\.json"):
        hf.load(tmp_path)
    with pytest.raises(ModelError, match="found a file"):
        hf.load(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match="no model /nowhere/at/all"):
        hf.load("/nowhere/at/all")
    for text in ("{", "[]", '"llama"', "\0"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json"):
            hf.load(tmp_path)


def test_weights_that_cannot_be_read(tmp_path) -> None:
    saved(tmp_path)
    weights = tmp_path / hf.WEIGHTS
    whole = weights.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            hf.load(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"found pytorch_model\.bin.*never read: convert them to safetensors"):
        hf.load(tmp_path)


def test_shards_that_do_not_fit_their_index(tmp_path) -> None:
    twin(saved(tmp_path / "one")).save_pretrained(tmp_path / "many", max_shard_size="200KB")
    index = tmp_path / "many" / hf.INDEX
    original = index.read_text()
    names = json.loads(original)["weight_map"]
    shards = sorted(set(names.values()))

    def told(text: str, message: str) -> None:
        index.write_text(text)
        with pytest.raises(ModelError, match=message):
            hf.load(tmp_path / "many")

    told("{}", "not an index")
    told(original.replace(shards[0], "../one/model.safetensors"), "outside its folder")
    told(original.replace(shards[0], "gone.safetensors"), "lacks the shard gone")
    told(json.dumps({"weight_map": {**names, "model.norm.weight": shards[0], "extra.weight": shards[0]}}), "index")
    told(json.dumps({"weight_map": {**names, "extra.weight": shards[0]}}), "extra.weight is in the index but in no shard")


def test_hub_names(tmp_path, monkeypatch) -> None:
    model = saved(tmp_path / "copy")
    asked = []

    def fetch(repository: str, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_type == "model"
        asked.append((repository, revision))
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        return str(tmp_path / "copy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(hf.load("owner/name").head_weight, model.head_weight)
    hf.load("owner/name@v1.0")
    assert asked == [("owner/name", None), ("owner/name", "v1.0")]

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ModelError, match=r"^model 'owner/name': no such path here, not in the cache, and the hub cannot be reached\. Check"
    ):
        hf.load("owner/name")
