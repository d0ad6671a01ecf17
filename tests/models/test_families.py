"""Every family against transformers at toy size: logits, the gradient of every parameter, folders both ways, cached and packed passes."""

import json
from pathlib import Path

import pytest
import torch
from family_toys import SIZE, TOYS, in_our_names, theirs, tokens
from torch.nn import functional
from transformers import AutoModelForCausalLM

from luyen.core import config as configs
from luyen.core.errors import ModelError
from luyen.inference.cache import KeyValueCache, PromptCache
from luyen.models import hf
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer


def ours(name: str, folder: Path) -> Transformer:
    """What we read of the folder that transformers writes of a toy."""
    theirs(name).save_pretrained(folder)
    return hf.load(folder)


@pytest.mark.parametrize("name", TOYS)
def test_logits_and_gradients_equal_transformers(name, tmp_path) -> None:
    their_model, model = theirs(name), ours(name, tmp_path)
    for ids in (tokens(1, 5), tokens(3, 40)):
        logits, their_logits = model.logits(model(ids)), their_model(ids).logits
        torch.testing.assert_close(logits, their_logits, rtol=1.3e-6, atol=1e-5)
    for scores in (logits, their_logits):
        functional.cross_entropy(scores.flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    expected = in_our_names(TOYS[name]["model_type"], {key: weight.grad for key, weight in their_model.named_parameters()})
    found = {key: weight.grad for key, weight in model.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", TOYS)
def test_folders_go_both_ways(name, tmp_path) -> None:
    """Sharded in, single out; transformers misses nothing, meets nothing it does not know, and has the same bits."""
    their_model = theirs(name)
    their_model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / hf.INDEX).is_file()
    model = hf.load(tmp_path / "theirs")
    expected = in_our_names(TOYS[name]["model_type"], their_model.state_dict())
    expected = {key: tensor for key, tensor in expected.items() if key in model.state_dict()}
    assert expected.keys() == model.state_dict().keys() and all(
        torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items()
    )
    (tmp_path / "ours").mkdir()
    hf.save(model, tmp_path / "ours")
    again, account = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True, attn_implementation="eager")
    assert type(again) is type(their_model) or name == "llama"
    assert not any(account[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, tensor in their_model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    ids = tokens(2, 40)
    torch.testing.assert_close(again(ids).logits, their_model(ids).logits, rtol=0, atol=0)
    back = hf.load(tmp_path / "ours")
    assert back.config == model.config == type(model.config)(**configs.dump(model.config))


@pytest.mark.parametrize("name", TOYS)
@torch.no_grad()
def test_cached_decoding_is_as_uncached(name, tmp_path) -> None:
    """Prompts of three lengths, then token after token beyond every window."""
    model = ours(name, tmp_path)
    rows, lengths = tokens(3, 30), [9, 1, 4]
    cache = KeyValueCache(model.config, lengths, 20, torch.device("cpu"), torch.float32)
    flat = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])[None]
    found = [list(model(flat, cache=PromptCache(cache, range(len(lengths)), Layout.packed(lengths)))[0].split(lengths))]
    for step in range(20):
        cache.advance()
        ids = torch.stack([row[length + step] for row, length in zip(rows, lengths, strict=True)])[:, None]
        found.append(list(model(ids, cache=cache)))
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        whole = model(row[None, : length + 20])[0]
        torch.testing.assert_close(torch.cat([step[number] for step in found]), whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "lengths"), [*((name, [5, 1, 30, 2, 17]) for name in TOYS), ("mistral", [9, 9, 9]), ("mixtral", [9, 9, 9])]
)
def test_packed_sequences_are_as_if_alone(name, lengths, tmp_path) -> None:
    model, ids = ours(name, tmp_path), tokens(1, sum(lengths))
    weight = torch.randn(1, sum(lengths), 32, generator=torch.Generator().manual_seed(3))
    packed = model(ids, Layout.packed(lengths))
    gradients = torch.autograd.grad((packed * weight).sum(), list(model.model.parameters()))
    alone = torch.cat([model(sequence[None])[0] for sequence in ids[0].split(lengths)])[None]
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=2e-5)
    for gradient, other in zip(gradients, torch.autograd.grad((alone * weight).sum(), list(model.model.parameters())), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=5e-4)


def described(folder: Path, **values) -> None:
    folder.joinpath("config.json").write_text(json.dumps({**{key: v for key, v in SIZE.items() if v is not None}, **values}))


def test_what_is_assumed_when_keys_are_missing(tmp_path) -> None:
    """The same as transformers' config classes say, key by key."""
    from transformers import AutoConfig

    for model_type in ("mistral", "qwen2", "qwen3", "mixtral", "olmoe", "qwen3_moe", "qwen2_moe"):
        needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = {**{key: SIZE[key] for key in needed}, "num_attention_heads": 32, "hidden_size": 64, "num_hidden_layers": 30}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **sizes}))
        config, usual = hf.read_config(tmp_path), AutoConfig.for_model(model_type, **sizes)
        assert config.num_kv_heads == usual.num_key_value_heads and config.context_length == usual.max_position_embeddings
        assert config.head_dim == (getattr(usual, "head_dim", None) or 2)
        assert (config.norm_eps, config.tied, config.init_std) == (usual.rms_norm_eps, usual.tie_word_embeddings, usual.initializer_range)
        assert config.rope_theta == usual.rope_parameters["rope_theta"]
        assert config.variant.window == (getattr(usual, "sliding_window", None) or 0)
        experts = config.variant.experts
        if experts is not None:
            assert (experts.count, experts.per_token) == (usual.num_experts, usual.num_experts_per_tok)
            assert experts.intermediate_size == getattr(usual, "moe_intermediate_size", usual.intermediate_size)
            assert experts.balance == usual.router_aux_loss_coef and experts.normalised == getattr(usual, "norm_topk_prob", True)
            assert experts.shared_size == getattr(usual, "shared_expert_intermediate_size", 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv is not supported; found 8.0; expected None"),
        ({"model_type": "olmoe", "attention_bias": True}, "attention_bias is not supported"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise is not supported; found 0.1"),
        ({"model_type": "mixtral", "num_experts_per_token": 2}, r"unknown key 'num_experts_per_token'.*'num_experts_per_tok'"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "per_token 9 is more than the 8 experts"),
        ({"model_type": "mistral", "max_window_layers": 3}, "unknown key 'max_window_layers'"),
        ({"model_type": "qwen2", "use_mrope": True}, "use_mrope is not supported"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types; found"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3}, "layer_types asks for windows"),
        ({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is not supported; found 'yarn'"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": "all"},
            "max_window_layers; found 'all'; expected a whole number",
        ),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0, 1, 2]}, "leave no layer with experts"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step; found 0; expected 1 or more"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": 1}, "norm_topk_prob; found 1; expected true or false"),
        ({"model_type": "qwen2", "num_hidden_layers": "x"}, "num_layers; found 'x'"),
        ({"model_type": "qwen3_moe", "num_experts": 0}, "variant.experts.count; found 0"),
    ],
)
def test_what_asks_for_something_else_is_refused(values, told, tmp_path) -> None:
    described(tmp_path, **values)
    with pytest.raises(ModelError, match=told) as caught:
        hf.read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_decoder_that_no_family_has_is_not_written(tmp_path) -> None:
    model = ours("qwen2", tmp_path)
    model.config = model.config.model_copy(update={"variant": model.config.variant.model_copy(update={"qk_norm": "whole"})})
    with pytest.raises(
        ModelError, match="no family of Hugging Face's has this decoder; found qkv_bias True, qk_norm whole; expected one of"
    ):
        hf.save(model, tmp_path)
