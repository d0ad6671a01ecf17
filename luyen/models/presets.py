"""Sizes of the decoder by name, one line each."""

from __future__ import annotations

from typing import Any, NamedTuple

from luyen.core import config as configs
from luyen.core.errors import ConfigError, nearest
from luyen.models.config import TransformerConfig


class Size(NamedTuple):
    """What a preset fixes; the vocabulary comes from the tokenizer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    context_length: int
    tied: bool


# Millions in the names count a vocabulary of 4096 up to 8m, 8192 for 15m and 60m, 50257 for 124m and 350m, 32000 above.
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
}


def preset(name: str, vocab_size: int, **changes: Any) -> TransformerConfig:
    """The config of a named size for a vocabulary; `changes` replace single fields.

    Raises ConfigError for an unknown name (with the nearest) and for a field that does not exist or does not fit.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}", fix=nearest(name, PRESETS))
    values = {**PRESETS[name]._asdict(), "vocab_size": vocab_size, **changes}
    return configs.load(TransformerConfig, values, source=f"preset {name}")


def count_parameters(config: TransformerConfig) -> int:
    """Number of weights of a decoder of this size, without building it."""
    width, heads = config.hidden_size, config.head_dim * (config.num_heads + config.num_kv_heads)
    layer = 2 * width * heads + 3 * width * config.intermediate_size + 2 * width
    embeddings = config.vocab_size * width * (1 if config.tied else 2)
    return embeddings + config.num_layers * layer + width
