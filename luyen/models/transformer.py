"""The decoder of Llama 2 (Touvron et al., 2023, arXiv:2307.09288, section 2.2).

    h = x + Attention(RMSNorm(x))                 rotary positions, grouped key-value heads
    y = h + down(silu(gate(n)) * up(n)),  n = RMSNorm(h)

What the families after it changed is its config's `variant`: slower angles (Llama 3), a window (Mistral), biases of queries, keys and
values (Qwen2), norms of queries and keys (Qwen3), experts (Mixtral, OLMoE; models/moe.py). Parameters are named as in Hugging Face's
Llama, so files of dense models need no mapping.

Shapes: B rows, T tokens, D hidden size, H query heads, K key-value heads, E head size, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.models.attention import Cache, Layout, causal_attention, packed_attention
from luyen.models.config import TransformerConfig
from luyen.models.functions import rms_norm, rotate
from luyen.models.moe import FeedForward, Mixture
from luyen.models.rotary import rotation


@dataclass(frozen=True)
class Context:
    """What all layers share in one forward pass."""

    cosine: Tensor
    sine: Tensor
    layout: Layout | None
    cache: Cache | None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        variant, query, key = config.variant, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.layer, self.head_dim, self.window, self.qk_norm = layer, config.head_dim, variant.window_of(layer), variant.qk_norm
        self.q_proj = nn.Linear(config.hidden_size, query, bias=variant.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=variant.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=variant.qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)
        whole = variant.qk_norm == "whole"
        self.q_norm = RMSNorm(query if whole else config.head_dim, config.norm_eps) if variant.qk_norm else None
        self.k_norm = RMSNorm(key if whole else config.head_dim, config.norm_eps) if variant.qk_norm else None

    def forward(self, hidden_BTD: Tensor, context: Context) -> Tensor:
        """What every position gathers from those before it: in the cache, in its own packed sequence, or in its row."""
        query_BTHE = rotate(self._heads(self.q_proj(hidden_BTD), self.q_norm), context.cosine, context.sine)
        key_BTKE = rotate(self._heads(self.k_proj(hidden_BTD), self.k_norm), context.cosine, context.sine)
        value_BTKE = self.v_proj(hidden_BTD).unflatten(-1, (-1, self.head_dim))
        if context.cache is not None:
            attended_BTHE = context.cache.attend(self.layer, query_BTHE, key_BTKE, value_BTKE, self.window)
        elif context.layout is not None:
            attended_BTHE = packed_attention(query_BTHE[0], key_BTKE[0], value_BTKE[0], context.layout, self.window)[None]
        else:
            attended_BTHE = causal_attention(query_BTHE, key_BTKE, value_BTKE, self.window)
        projected: Tensor = self.o_proj(attended_BTHE.flatten(-2))
        return projected

    def _heads(self, projected_BTP: Tensor, norm: RMSNorm | None) -> Tensor:
        """Queries or keys by head, normed head by head or before they are cut into heads. P is the number of heads times E."""
        if norm is not None and self.qk_norm == "whole":
            projected_BTP = norm(projected_BTP)
        states_BTHE: Tensor = projected_BTP.unflatten(-1, (-1, self.head_dim))  # type: ignore[no-untyped-call]
        if norm is not None and self.qk_norm == "head":
            states_BTHE = norm(states_BTHE)
        return states_BTHE


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind its norm and beside a residual path."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        experts, width = config.variant.experts_of(layer), config.hidden_size
        self.mlp = FeedForward(width, config.intermediate_size) if experts is None else Mixture(width, experts)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, hidden_BTD: Tensor, context: Context) -> Tensor:
        hidden_BTD = hidden_BTD + self.self_attn(self.input_layernorm(hidden_BTD), context)
        output_BTD: Tensor = hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))
        return output_BTD


class Decoder(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        hidden_BTD = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, context)
        output_BTD: Tensor = self.norm(hidden_BTD)
        return output_BTD


class Transformer(nn.Module):
    """A decoder and its head. `forward` gives hidden states; `logits` applies the head to those that need it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.initialise()

    def forward(self, tokens_BT: Tensor, layout: Layout | None = None, cache: Cache | None = None) -> Tensor:
        """Hidden states after the final norm, (B, T, D).

        Without layout and cache each row is one causal sequence. With a layout B is 1 and the T tokens are its
        sequences one after another. With a cache the tokens stand at `cache.positions_BT` and see what it holds.
        """
        if cache is not None:
            positions = cache.positions_BT
        elif layout is not None:
            positions = layout.positions_T[None]
        else:
            positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        variant = self.config.variant
        cosine, sine = rotation(positions, self.config.head_dim, variant.rope_theta, self.head_weight.dtype, variant.rope_scaling)
        hidden_BTD: Tensor = self.model(tokens_BT, Context(cosine, sine, layout, cache))
        return hidden_BTD

    @property
    def head_weight(self) -> Tensor:
        """The output head, (V, D); the embedding when tied."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, (..., V), from hidden states (..., D)."""
        return functional.linear(hidden, self.head_weight)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw weights from torch's generator: normal(0, init_std), outputs of residual branches over sqrt(2 layers) (GPT-2)."""
        config = self.config
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            elif parameter is self.head_weight:
                parameter.normal_(0.0, head_std(config))
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0.0, config.init_std / math.sqrt(2 * config.num_layers))
            else:
                parameter.normal_(0.0, config.init_std)


def head_std(config: TransformerConfig) -> float:
    """Initial deviation of the head that keeps the first loss within 0.1 of ln(V): init_std, or less for wide models.

    A hidden state has D entries of mean square 1, so logits have variance D std^2 and raise the loss by half of it.
    A tied head adds the logit of each token for itself, up to D std, which raises the loss by about exp(D std) / V.
    Each part is kept below 0.05.
    """
    std = min(config.init_std, math.sqrt(0.1 / config.hidden_size))
    if config.tied:
        std = min(std, math.log1p(0.05 * config.vocab_size) / config.hidden_size)
    return std
