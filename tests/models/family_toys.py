"""A toy of every family in transformers, with random weights large enough to matter, and its numbers under our names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luyen.models.families import FAMILIES

SIZE: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SHALLOW = {"use_sliding_window": True, "sliding_window": 6}
FEW = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TOYS: dict[str, dict[str, Any]] = {
    "llama 3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama, linear": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, late windows": {"model_type": "qwen2", **SHALLOW, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
    "qwen3, layer types": {
        "model_type": "qwen3", "head_dim": 12, **SHALLOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral, window": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 5},
    "olmoe": {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3},
    "olmoe, sums to 1": {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 12, **FEW, "norm_topk_prob": True, **SHALLOW},
    "qwen3_moe, some layers": {"model_type": "qwen3_moe", "head_dim": 8, **FEW, "decoder_sparse_step": 2},
    "qwen2_moe": {"model_type": "qwen2_moe", **FEW, "shared_expert_intermediate_size": 20},
    "qwen2_moe, windows": {
        "model_type": "qwen2_moe", **FEW, "shared_expert_intermediate_size": 20, **SHALLOW, "mlp_only_layers": [1], "qkv_bias": False,
    },
}  # fmt: skip
"""Tokens of 40 are longer than every window."""


def theirs(name: str, seed: int = 0) -> PreTrainedModel:
    """transformers' model of a toy. Norm weights are about 1, all else, biases too, about 0."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SIZE, **TOYS[name]}), attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.2)
    return model.eval()


def in_our_names(model_type: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients of transformers' model by our names: experts one by one, which it holds in one tensor."""
    found = {}
    for name, tensor in tensors.items():
        before, fused, kind = name.partition("mlp.experts.")
        if fused and kind in ("gate_up_proj", "down_proj"):
            parts = tensor.chunk(2, 1) if kind == "gate_up_proj" else (tensor,)
            for part, own in zip(parts, ("gate_proj", "up_proj") if len(parts) == 2 else (kind,), strict=True):
                found |= {f"{before}mlp.experts.{number}.{own}.weight": matrix for number, matrix in enumerate(part)}
        else:
            found[FAMILIES[model_type].in_model(name)] = tensor
    return found


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    """Token ids, (rows, length)."""
    return torch.randint(0, SIZE["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
