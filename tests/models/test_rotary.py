"""Slower angles against transformers' for the sizes of Llama 3, and by hand."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from luyen.models.config import RopeScaling
from luyen.models.presets import preset
from luyen.models.rotary import frequencies


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b"])
def test_angles_of_llama_3_equal_transformers(name) -> None:
    config = preset(name, 128256)
    scaling = config.variant.rope_scaling
    assert scaling is not None
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": scaling.factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    sizes = {"hidden_size": config.hidden_size, "num_attention_heads": config.num_heads, "max_position_embeddings": 131072}
    theirs, factor = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(rope_parameters=rope, **sizes), "cpu")
    assert factor == 1.0
    torch.testing.assert_close(frequencies(config.head_dim, config.rope_theta, scaling), theirs, rtol=3e-7, atol=0)


def test_by_hand() -> None:
    plain = frequencies(8, 10000.0, None)
    torch.testing.assert_close(plain, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    linear = RopeScaling(kind="linear", factor=4.0)
    torch.testing.assert_close(frequencies(8, 10000.0, linear), plain / 4)
    # Turns in the first training: 200 for the first pair, 20, 2 and 0.2; kept above 4, slowed below 1, between them a third and two thirds.
    llama3 = RopeScaling(kind="llama3", factor=8.0, original_length=round(400 * math.pi))
    expected = torch.tensor([1.0, 0.1, 0.01 * (2 / 3 / 8 + 1 / 3), 0.001 / 8])
    torch.testing.assert_close(frequencies(8, 10000.0, llama3), expected, rtol=1e-3, atol=0)
