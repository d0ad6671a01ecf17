"""What an adapter trains, counted without a model: by the figure of PEFT, by hand, and beside the model that `adapt` makes."""

from typing import Any

import adapter_toys as toys
import pytest

from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.adapters.count import own_weights, trained_weights
from luyen.core.config import load
from luyen.models.config import TransformerConfig
from luyen.models.presets import preset
from luyen.models.transformer import Transformer

EXPERTS = {"count": 4, "per_token": 2, "intermediate_size": 24, "shared_size": 20}
MIXTURE = load(TransformerConfig, {**toys.SIZE.model_dump(), "variant": {"experts": EXPERTS, "qk_norm": "whole"}})


def test_lora_on_llama_2_is_what_peft_says() -> None:
    # peft's LoraConfig(r=8, target_modules="all-linear") on Llama 2 7B says 19,988,480 trainable parameters.
    assert trained_weights(preset("llama-2-7b", 32_000), AdapterConfig(method="lora", rank=8)) == 19_988_480


def test_lora_on_a_mixture_by_hand() -> None:
    # Each layer: q, o of 32 x 32, k, v of 32 x 16, three maps of 32 x 24 an expert and of 32 x 20 the shared one; no router.
    layer = 2 * (32 + 32) + 2 * (32 + 16) + 4 * 3 * (32 + 24) + 3 * (32 + 20)
    assert trained_weights(MIXTURE, AdapterConfig(method="lora", rank=3)) == 2 * 3 * layer


@pytest.mark.parametrize("size", [toys.SIZE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize(
    "values",
    [
        {"method": "lora", "rank": 5},
        {"method": "dora"},
        {"method": "bottleneck", "bottleneck": {"placement": "houlsby"}},
        {"method": "compacter"},
        {"method": "ia3"},
        {"method": "prefix"},
    ],
    ids=lambda values: values["method"],
)
def test_the_count_is_that_of_the_model_that_is_made(size: TransformerConfig, values: dict[str, Any]) -> None:
    made, config = Transformer(size), toys.config(**values)
    adapt(made, config)
    assert trained_weights(size, config) == sum(each.numel() for each in made.parameters() if each.requires_grad)


def test_the_models_own_weights_among_them_by_hand() -> None:
    norms, table = (2 * 2 + 1) * 32, 97 * 32
    assert own_weights(toys.SIZE, toys.config(rank=4)) == 0, "new ones alone"
    beside = toys.config(rank=4, also=["norms", "head"])
    assert own_weights(toys.SIZE, beside) == norms + table
    assert trained_weights(toys.SIZE, beside) == trained_weights(toys.SIZE, toys.config(rank=4)) + norms + table
    alone = toys.config(method="selective", also=["norms"])
    assert own_weights(toys.SIZE, alone) == trained_weights(toys.SIZE, alone) == norms
    chosen = toys.config(method="esft")
    assert own_weights(MIXTURE, chosen) == trained_weights(MIXTURE, chosen) > 0
    assert own_weights(toys.SIZE, toys.config(rank=4), 3) == 0, "rows of new tokens stand beside the tables"
