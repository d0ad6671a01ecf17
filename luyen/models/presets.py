"""Sizes of the decoder by name, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from luyen.core import config as configs
from luyen.core.errors import ConfigError, nearest
from luyen.models.config import ExpertsConfig, RopeScaling, TransformerConfig, VariantConfig
from luyen.models.counts import attention_weights, feed_forward_weights, vector_weights


class Size(NamedTuple):
    """What a preset fixes; the vocabulary comes from the tokenizer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    context_length: int
    tied: bool
    variant: VariantConfig = VariantConfig()
    head_dim: int = 0
    norm_eps: float = 1e-5


def _llama3(factor: float) -> VariantConfig:
    """Llama 3.1's and 3.2's angles (arXiv:2407.21783)."""
    return VariantConfig(rope_theta=500000.0, rope_scaling=RopeScaling(kind="llama3", factor=factor))


QWEN2 = VariantConfig(rope_theta=1e6, qkv_bias=True)
QWEN3 = VariantConfig(rope_theta=1e6, qk_norm="head")
MIXTRAL = VariantConfig(rope_theta=1e6, experts=ExpertsConfig(count=8, per_token=2, balance=0.02))
OLMOE = VariantConfig(qk_norm="whole", experts=ExpertsConfig(count=64, per_token=8, normalised=False))

# Millions in the names count a vocabulary of 4096 up to 8m, 8192 for 15m and 60m, 50257 for 124m and 350m, the family's own above.
PRESETS: dict[str, Size] = {
    "llama-1m": Size(128, 4, 4, 2, 352, 512, True),
    "llama-2m": Size(192, 4, 6, 2, 512, 512, True),
    "llama-3m": Size(192, 6, 6, 2, 512, 512, True),
    "llama-4m": Size(256, 4, 8, 2, 704, 512, True),
    "llama-8m": Size(320, 6, 10, 2, 864, 512, True),
    "llama-15m": Size(384, 6, 6, 2, 1024, 512, False),
    "llama-60m": Size(640, 12, 10, 2, 1728, 512, False),
    "llama-124m": Size(768, 12, 12, 12, 2048, 1024, True),
    "llama-350m": Size(1024, 24, 16, 16, 2736, 2048, True),
    "llama-1b": Size(2048, 22, 32, 4, 5632, 2048, False),  # TinyLlama 1.1B (arXiv:2401.02385)
    "llama-2-7b": Size(4096, 32, 32, 32, 11008, 4096, False),  # Llama 2 (arXiv:2307.09288)
    "llama-2-13b": Size(5120, 40, 40, 40, 13824, 4096, False),
    "llama-2-70b": Size(8192, 80, 64, 8, 28672, 4096, False),
    "llama-3.1-8b": Size(4096, 32, 32, 8, 14336, 131072, False, _llama3(8)),
    "llama-3.2-1b": Size(2048, 16, 32, 8, 8192, 131072, True, _llama3(32)),
    "mistral-7b": Size(4096, 32, 32, 8, 14336, 32768, False, VariantConfig(window=4096)),  # v0.1 (arXiv:2310.06825)
    "qwen2.5-0.5b": Size(896, 24, 14, 2, 4864, 32768, True, QWEN2, norm_eps=1e-6),  # arXiv:2412.15115
    "qwen2.5-7b": Size(3584, 28, 28, 4, 18944, 131072, False, QWEN2, norm_eps=1e-6),
    "qwen3-3m": Size(192, 6, 6, 2, 512, 512, True, VariantConfig(qk_norm="head")),
    "qwen3-0.6b": Size(1024, 28, 16, 8, 3072, 40960, True, QWEN3, 128, 1e-6),  # arXiv:2505.09388
    "moe-6m": Size(192, 4, 6, 2, 256, 512, True, VariantConfig(experts=ExpertsConfig(count=8, per_token=2))),
    "mixtral-8x7b": Size(4096, 32, 32, 8, 14336, 32768, False, MIXTRAL),  # arXiv:2401.04088
    "olmoe-1b-7b": Size(2048, 16, 16, 16, 1024, 4096, False, OLMOE),  # arXiv:2409.02060
}

PUBLISHED: dict[str, tuple[str, int]] = {
    "meta-llama/Llama-2-7b-hf": ("llama-2-7b", 32000),
    "meta-llama/Llama-2-13b-hf": ("llama-2-13b", 32000),
    "meta-llama/Llama-2-70b-hf": ("llama-2-70b", 32000),
    "meta-llama/Llama-3.1-8B": ("llama-3.1-8b", 128256),
    "meta-llama/Llama-3.2-1B": ("llama-3.2-1b", 128256),
    "mistralai/Mistral-7B-v0.1": ("mistral-7b", 32000),
    "Qwen/Qwen2.5-0.5B": ("qwen2.5-0.5b", 151936),
    "Qwen/Qwen2.5-7B": ("qwen2.5-7b", 152064),
    "Qwen/Qwen3-0.6B": ("qwen3-0.6b", 151936),
    "mistralai/Mixtral-8x7B-v0.1": ("mixtral-8x7b", 32000),
    "allenai/OLMoE-1B-7B-0924": ("olmoe-1b-7b", 50304),
}
"""Hub name -> preset and vocabulary, so that a model that is not on this machine can be planned; a run reads its own config."""


def preset(name: str, vocab_size: int, **changes: Any) -> TransformerConfig:
    """The config of a named size for a vocabulary; `changes` replace single fields, also inside a `variant` that is given as a mapping.

    Raises ConfigError for an unknown name (with the nearest) and for a field that does not exist or does not fit.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}", fix=nearest(name, PRESETS))
    values = {**PRESETS[name]._asdict(), "vocab_size": vocab_size, **changes}
    if isinstance(values["variant"], Mapping):
        values["variant"] = configs.merge(configs.dump(PRESETS[name].variant), values["variant"])
    return configs.load(TransformerConfig, values, source=f"preset {name}")


def count_parameters(config: TransformerConfig) -> int:
    """Number of weights of a decoder of this size, without building it."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied else 2)
    return embeddings + attention_weights(config) + feed_forward_weights(config) + vector_weights(config)
