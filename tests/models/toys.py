"""Toy decoders and their twins in transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

# LitGPT's parity size for Llama: vocabulary 10000, 2 layers, 8 heads, width 32, feed-forward 86.
SMALL: dict[str, Any] = {"vocab_size": 10000, "hidden_size": 32, "intermediate_size": 86, "num_layers": 2, "num_heads": 8}
IDS = torch.tensor([[9856, 23, 491, 1536, 304]])


def toy(seed: int = 0, **changes: Any) -> Transformer:
    """A small random decoder whose norm weights are not 1 and whose weights are large enough to matter."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0, 0.2) if parameter.ndim == 1 else parameter.normal_(0.0, 0.2)
    return model


def twin(model: Transformer) -> LlamaForCausalLM:
    """transformers' Llama with the same weights."""
    config = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim, max_position_embeddings=config.context_length, rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=config.tied,
            attn_implementation="eager", pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"} and (not missing or config.tied)
    return theirs.eval()
