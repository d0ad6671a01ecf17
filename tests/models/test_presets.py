"""Preset sizes against the numbers their papers give."""

import json

import pytest
import torch

from luyen.core.errors import ConfigError
from luyen.models.counts import idle_weights
from luyen.models.families import FIELDS, write_rope, written_as
from luyen.models.hf import read_config
from luyen.models.presets import PRESETS, count_parameters, preset
from luyen.models.transformer import Transformer

# As Hugging Face counts them, by the vocabulary that each was trained with; GPT-2's 124M needs positions that this has not.
PUBLISHED = {
    "llama-2-7b": (32000, 6_738_415_616), "llama-2-13b": (32000, 13_015_864_320), "llama-2-70b": (32000, 68_976_648_192),
    "llama-1b": (32000, 1_100_048_384), "llama-3.1-8b": (128256, 8_030_261_248), "llama-3.2-1b": (128256, 1_235_814_400),
    "mistral-7b": (32000, 7_241_732_096), "qwen2.5-0.5b": (151936, 494_032_768), "qwen2.5-7b": (152064, 7_615_616_512),
    "qwen3-0.6b": (151936, 596_049_920), "mixtral-8x7b": (32000, 46_702_792_704), "olmoe-1b-7b": (50304, 6_919_161_856),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name) -> None:
    vocabulary, count = PUBLISHED[name]
    assert count_parameters(preset(name, vocabulary)) == count


def test_weights_of_a_token() -> None:
    """Mixtral's paper says 13 billion active of 47, OLMoE's 1.3 of 6.9."""
    for name, total, active in (("mixtral-8x7b", 46.7e9, 12.9e9), ("olmoe-1b-7b", 6.92e9, 1.28e9)):
        config = preset(name, PUBLISHED[name][0])
        idle = idle_weights(config)
        assert count_parameters(config) == pytest.approx(total, rel=0.01)
        assert count_parameters(config) - idle == pytest.approx(active, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_of_a_family_and_comes_back_from_its_folder(name, tmp_path) -> None:
    """mistral-7b is written as mistral and so on; the small ones as the family whose variant they have."""
    config = preset(name, 4096)
    family, keys = written_as(config)
    assert family == {"moe": "mixtral", "qwen2.5": "qwen2"}.get(name.split("-")[0], name.split("-")[0])
    common = {key: getattr(config, field) for key, (field, _) in FIELDS.items()}
    described = {**common, "model_type": family, **write_rope(config.variant), **keys}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_that_of_the_model_and_the_name_is_honest(name) -> None:
    vocabulary = {"llama-15m": 8192, "llama-60m": 8192, "llama-124m": 50257, "llama-350m": 50257}.get(name, 4096)
    config = preset(name, vocabulary)
    with torch.device("meta"):
        model = Transformer(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(config) == count
    if name.endswith("m"):
        assert count / 1e6 == pytest.approx(int(name.split("-")[-1].removesuffix("m")), rel=0.3)


def test_changes_replace_fields() -> None:
    config = preset("llama-3m", 4096, tied=False, context_length=64)
    assert (config.tied, config.context_length, config.num_layers) == (False, 64, 6)


def test_a_variant_changes_what_it_names() -> None:
    config = preset("moe-6m", 4096, variant={"window": 64, "experts": {"balance": 0.5}})
    assert (config.variant.window, config.variant.experts.balance, config.variant.experts.count) == (64, 0.5, 8)
    assert preset("qwen2.5-0.5b", 4096, variant={"window": 64}).rope_theta == 1e6
    assert preset("moe-6m", 4096, variant={"experts": None}).variant.experts is None
    with pytest.raises(ConfigError, match=r"unknown key 'variant.windows'. Did you mean 'variant.window'"):
        preset("llama-3m", 4096, variant={"windows": 64})


def test_unknown_names_and_fields_are_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model preset 'llama-3M'. Did you mean 'llama-3m'\?"):
        preset("llama-3M", 4096)
    with pytest.raises(ConfigError, match="unknown key 'layers'"):
        preset("llama-3m", 4096, layers=3)
    with pytest.raises(ConfigError, match="does not divide"):
        preset("llama-3m", 4096, num_kv_heads=4)
