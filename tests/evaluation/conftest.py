"""A tokenizer of a few hundred ids and a model of two layers."""

import pytest
import torch

from luyen.models.transformer import Transformer, TransformerConfig
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train(["Return the sine of x. What does json.dumps do? Học sâu."] * 3, TokenizerConfig(vocab_size=300, min_frequency=1))


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "context_length": 64}
    return Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size, tied=False, init_std=0.2, **size))
