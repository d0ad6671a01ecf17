"""Prefix tuning (Li and Liang, 2021, arXiv:2101.00190, section 4): learned keys and values before those of every sequence, in every layer.

    attention_l(q, [Pk_l ; K_l], [Pv_l ; V_l])        Pk_l, Pv_l: P x K x E, learned;  K_l, V_l of the tokens

The keys are learned as they are after the rotary embedding. They start as the keys and values of a text, which the paper found the better
start (section 7.4): of random tokens, or of `prompt.text`. With `prompt.hidden` a perceptron makes them all from P vectors of the size of
one key while training (section 4.3); then they start at random. Once trained the perceptron has done its work, and the keys and values are
what is saved.

The decoder reads the tokens alone. Attention gets a query of zeros at each learned position, so that all sequences stay causal squares,
and what it attends to is left out again.

Shapes: B rows, T tokens, W places of tokens and learned positions, P learned positions, H query heads, K key-value heads, E head size,
        L layers.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig
from luyen.adapters.preamble import Preamble, Preambled, Vectors, decoder_for, install
from luyen.models.attention import Cache, Layout, packed_attention
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer


class Prefixed:
    """The `Cache` of a pass that reads sequences behind a prefix: it adds the learned keys and values, and attends as `inner` does."""

    def __init__(self, learned: Sequence[Tensor], whole: Preambled, inner: Cache | None) -> None:
        self.learned, self.whole, self.inner, self.way = learned, whole, inner, _way()

    @property
    def positions_BT(self) -> Tensor:
        """Position of each token in its sequence, (1, T), from P on."""
        return self.whole.positions_T[self.whole.real_T][None]

    def attend(self, layer: int, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        """What each token sees in its window of its sequence and of the prefix before it. B is 1."""
        return self.way(self, layer, (query_BTHE[0], key_BTKE[0], value_BTKE[0]), window)[None]


Way = Callable[[Prefixed, int, tuple[Tensor, Tensor, Tensor], int], Tensor]


def _attend(cache: Prefixed, layer: int, states: tuple[Tensor, Tensor, Tensor], window: int) -> Tensor:
    query_THE, key_TKE, value_TKE = states
    whole = cache.whole
    key_PKE, value_PKE = cache.learned[layer].unbind(1)
    query_WHE = whole.lengthened(query_THE, query_THE.new_zeros(whole.preamble, *query_THE.shape[1:]))
    key_WKE, value_WKE = whole.lengthened(key_TKE, key_PKE), whole.lengthened(value_TKE, value_PKE)
    if cache.inner is not None:
        attended_WHE = cache.inner.attend(layer, query_WHE[None], key_WKE[None], value_WKE[None], window)[0]
    else:
        attended_WHE = packed_attention(query_WHE, key_WKE, value_WKE, whole, window)
    return whole.shortened(attended_WHE)


@functools.cache
def _apart() -> Way:
    apart: Way = torch.compiler.disable(_attend)  # type: ignore[no-untyped-call]
    return apart


def _way() -> Way:
    """`_attend`, which compiled layers leave as it is, since what it does follows the lengths of one batch.

    Saying that loads the whole compiler, so it is said only where that is loaded.
    """
    return _apart() if "torch._dynamo" in sys.modules else _attend


class Prefix(Preamble):
    """Learned keys and values of all layers."""

    def __init__(self, config: TransformerConfig, tokens: int, vectors: Vectors) -> None:
        super().__init__(tokens, vectors)
        self.shape = (config.num_layers, 2, config.num_kv_heads, config.head_dim)

    def opened(self, tokens_BT: Tensor, whole: Preambled, cache: Cache | None) -> tuple[Tensor, Cache | None]:
        """The tokens as they are, and a cache that adds the prefix."""
        return tokens_BT.reshape(1, -1), Prefixed(self.vectors().unflatten(1, self.shape).unbind(1), whole, cache)

    def closed(self, hidden_1ND: Tensor, whole: Preambled) -> Tensor:
        """All of them: the decoder read nothing else."""
        return hidden_1ND if whole.rows[0] == 1 else hidden_1ND.reshape(*whole.rows, -1)

    @torch.no_grad()
    def begin(self, decoder: Transformer, ids: Sequence[int]) -> None:
        """The keys and values that the decoder alone makes of the ids."""
        self.vectors.weight.copy_(states_of(decoder, ids).flatten(1))


class _Kept:
    """The `Cache` of a pass whose keys and values are wanted."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.states = layout, list[Tensor]()

    @property
    def positions_BT(self) -> Tensor:
        return self.layout.positions_T[None]

    def attend(self, layer: int, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        self.states.append(torch.stack([key_BTKE[0], value_BTKE[0]], 1))
        return packed_attention(query_BTHE[0], key_BTKE[0], value_BTKE[0], self.layout, window)[None]


@torch.no_grad()
def states_of(decoder: Transformer, ids: Sequence[int]) -> Tensor:
    """Keys (rotated) and values of a text in every layer, (P, L, 2, K, E), by the decoder without what may stand before its sequences."""
    device = decoder.head_weight.device
    kept = _Kept(Layout.packed([len(ids)], device))
    decoder.forward(torch.tensor([list(ids)], device=device), cache=kept)
    return torch.stack(kept.states, 1)


def prefix(model: nn.Module, config: AdapterConfig) -> None:
    """Put learned keys and values before every sequence of a frozen decoder.

    Not the identity: a fresh prefix is that of P random tokens, or with `prompt.hidden` random. ConfigError for another kind of model.
    """
    tokens, hidden = config.prompt.tokens, config.prompt.hidden
    decoder = decoder_for(model, tokens)
    size, weight = decoder.config, decoder.head_weight
    key_size, dtype = size.num_kv_heads * size.head_dim, torch.promote_types(weight.dtype, torch.float32)
    if hidden:
        network = nn.Sequential(nn.Linear(key_size, hidden), nn.Tanh(), nn.Linear(hidden, 2 * size.num_layers * key_size))
        vectors = Vectors(torch.randn(tokens, key_size).to(weight.device, dtype), network.to(weight.device, dtype))
    else:
        vectors = Vectors(torch.empty(tokens, 2 * size.num_layers * key_size, device=weight.device, dtype=dtype))
    made = Prefix(size, tokens, vectors)
    if not hidden and weight.device.type != "meta":
        made.begin(decoder, torch.randint(size.vocab_size, (tokens,), device="cpu").tolist())
    decoder.add_module("prefix", made)
    install(decoder, made)
