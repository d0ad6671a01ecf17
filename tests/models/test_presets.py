"""Preset sizes against the numbers their papers give."""

import pytest
import torch

from luyen.core.errors import ConfigError
from luyen.models.presets import PRESETS, count_parameters, preset
from luyen.models.transformer import Transformer

# Llama 2's three sizes as Hugging Face counts them; TinyLlama's 1.1B; GPT-2's 124M needs positions that this has not.
PUBLISHED = {"llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192, "llama-1b": 1_100_048_384}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_sizes(name, count) -> None:
    assert count_parameters(preset(name, 32000)) == count


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_that_of_the_model_and_the_name_is_honest(name) -> None:
    vocabulary = {"llama-15m": 8192, "llama-60m": 8192, "llama-124m": 50257, "llama-350m": 50257}.get(name, 4096)
    config = preset(name, vocabulary)
    with torch.device("meta"):
        model = Transformer(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(config) == count
    if name.endswith("m"):
        assert count / 1e6 == pytest.approx(int(name.removeprefix("llama-").removesuffix("m")), rel=0.3)


def test_changes_replace_fields() -> None:
    config = preset("llama-3m", 4096, tied=False, context_length=64)
    assert (config.tied, config.context_length, config.num_layers) == (False, 64, 6)


def test_unknown_names_and_fields_are_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model preset 'llama-3M'. Did you mean 'llama-3m'\?"):
        preset("llama-3M", 4096)
    with pytest.raises(ConfigError, match="unknown key 'layers'"):
        preset("llama-3m", 4096, layers=3)
    with pytest.raises(ConfigError, match="does not divide"):
        preset("llama-3m", 4096, num_kv_heads=4)
