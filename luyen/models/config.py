"""Size and constants of a decoder. Nothing here imports torch, so a wrong size is told at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luyen.core.config import Config


class RopeScaling(Config):
    """Slower rotary angles, so that a model reaches further than the sequences it was first trained on."""

    kind: Literal["linear", "llama3"]
    """linear: all angles over the factor; llama3: only those of long wavelengths (models/rotary.py)."""
    factor: float = Field(ge=1)
    """How many times slower."""
    low_frequency: PositiveFloat = 1.0
    """llama3: wavelengths above original_length over this are slowed down in whole."""
    high_frequency: PositiveFloat = 4.0
    """llama3: wavelengths below original_length over this stay as they are."""
    original_length: PositiveInt = 8192
    """llama3: context length of the first training."""

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        if self.high_frequency <= self.low_frequency:
            raise ValueError(f"high_frequency {self.high_frequency} is not above low_frequency {self.low_frequency}")
        return self


class ExpertsConfig(Config):
    """Feed-forward layers of which each token takes a few (models/moe.py)."""

    count: int = Field(ge=2)
    """Experts of a layer."""
    per_token: PositiveInt
    """Experts that a token goes to."""
    intermediate_size: NonNegativeInt = 0
    """Width of an expert. 0: the model's intermediate_size."""
    shared_size: NonNegativeInt = 0
    """Width of a further expert that takes every token. 0: there is none."""
    normalised: bool = True
    """The weights of a token's experts sum to 1; else they are its shares among all experts."""
    balance: NonNegativeFloat = 0.01
    """What the balance of the experts' load counts beside the loss, in training."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers that have experts, from 0; the others are plain. Empty: all have."""

    @model_validator(mode="after")
    def _check(self) -> ExpertsConfig:
        if self.per_token > self.count:
            raise ValueError(f"per_token {self.per_token} is more than the {self.count} experts")
        return self


class VariantConfig(Config):
    """In what a decoder differs from Llama 2's."""

    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary embedding's wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Slower rotary angles; empty: none."""
    window: NonNegativeInt = 0
    """A token sees itself and the window - 1 tokens before it. 0: all before it."""
    window_layers: tuple[int, ...] = ()
    """Numbers of the layers with that window, from 0; the others see all. Empty: all have it."""
    qkv_bias: bool = False
    """Queries, keys and values have a bias."""
    qk_norm: Literal["", "head", "whole"] = ""
    """RMSNorm of queries and keys before rotation: of each head, or of all heads as one vector. Empty: none."""
    experts: ExpertsConfig | None = None
    """Mixtures of experts instead of one feed-forward layer; empty: none."""

    def window_of(self, layer: int) -> int:
        """The window of a layer; 0 where it sees everything."""
        return self.window if not self.window_layers or layer in self.window_layers else 0

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """The experts of a layer; None where it is plain."""
        return self.experts if self.experts and (not self.experts.layers or layer in self.experts.layers) else None


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
    variant: VariantConfig = VariantConfig()
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""
    tied: bool = True
    """The output head is the input embedding."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of initial weights; the head's is smaller where the first loss would leave ln(vocabulary)."""

    @property
    def rope_theta(self) -> float:
        """Base of the rotary embedding's wavelengths."""
        return self.variant.rope_theta

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Replace zeros by what they stand for, and put a `rope_theta` in its section: older checkpoints have it outside."""
        if not isinstance(values, dict):
            return values
        heads, width = values.get("num_heads"), values.get("hidden_size")
        if isinstance(heads, int) and isinstance(width, int) and heads > 0:
            values = {**values, "num_kv_heads": values.get("num_kv_heads") or heads}
            values["head_dim"] = values.get("head_dim") or width // heads
        variant = values.get("variant", {})
        variant = variant.model_dump() if isinstance(variant, VariantConfig) else variant
        if isinstance(variant, dict) and "rope_theta" in values:
            theta = values["rope_theta"]
            if variant.get("rope_theta", theta) != theta:
                raise ValueError(f"rope_theta is {theta} and variant.rope_theta {variant['rope_theta']}")
            variant = {**variant, "rope_theta": theta}
            values = {key: value for key, value in values.items() if key != "rope_theta"}
        experts = variant.get("experts") if isinstance(variant, dict) else None
        experts = experts.model_dump() if isinstance(experts, ExpertsConfig) else experts
        if isinstance(experts, dict) and not experts.get("intermediate_size") and "intermediate_size" in values:
            variant = {**variant, "experts": {**experts, "intermediate_size": values["intermediate_size"]}}
        return {**values, "variant": variant}

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.hidden_size % self.num_heads:  # transformers refuses such a folder, whatever its head_dim
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is not an even number above 0")
        experts = self.variant.experts
        for name, layers in (("window_layers", self.variant.window_layers), ("experts.layers", experts.layers if experts else ())):
            if any(not 0 <= layer < self.num_layers for layer in layers):
                raise ValueError(f"variant.{name} {list(layers)} names a layer that is not among the {self.num_layers}")
        return self
