"""Size and constants of a decoder. Nothing here imports torch, so a wrong size is told at once."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, PositiveInt, model_validator

from luyen.core.config import Config


class TransformerConfig(Config):
    """The size and constants of a decoder."""

    vocab_size: PositiveInt
    """Number of token ids."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    num_layers: PositiveInt
    """Number of blocks."""
    num_heads: PositiveInt
    """Number of query heads."""
    num_kv_heads: int = 0
    """Number of key-value heads; divides num_heads. 0: as many as query heads."""
    head_dim: int = 0
    """Size of a head, even. 0: hidden_size / num_heads."""
    context_length: PositiveInt = 512
    """Longest sequence it is meant for."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary embedding's wavelengths."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""
    tied: bool = True
    """The output head is the input embedding."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of initial weights; the head's is smaller where the first loss would leave ln(vocabulary)."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Replace the zeros of num_kv_heads and head_dim by what they stand for."""
        if isinstance(values, dict):
            heads, width = values.get("num_heads"), values.get("hidden_size")
            if isinstance(heads, int) and isinstance(width, int) and heads > 0:
                values = {**values, "num_kv_heads": values.get("num_kv_heads") or heads}
                values["head_dim"] = values.get("head_dim") or width // heads
        return values

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.hidden_size % self.num_heads:  # transformers refuses such a folder, whatever its head_dim
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is not an even number above 0")
        return self
