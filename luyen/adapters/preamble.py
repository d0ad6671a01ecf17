"""Learned positions before every sequence of a decoder that knows nothing of them: what prompt, P- and prefix tuning share.

Two hooks around the decoder's pass do it. On the way in every sequence, be it a row, one of a layout or a prompt that is read into a
cache, becomes P positions longer at its head; on the way out the hidden states of the learned positions are left out, so who calls sees
what it sees of any decoder. A learned position is number 0 to P - 1 of its sequence, and the first token is number P. A step of
generation passes as it is: what was learned lies in its cache.

Such a model computes something else from the start: unlike other adapters these methods do not begin as the identity, and what they
learn is no change of a weight, so it cannot be merged.

Shapes: B rows, T tokens, S sequences, P learned positions of each, W = T + S P places; D hidden size; I and O sizes of a network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor, nn

from luyen.core.errors import ConfigError, ModelError
from luyen.models.attention import Cache, Layout
from luyen.models.functions import pad, unpad
from luyen.models.transformer import Transformer


@runtime_checkable
class Reader(Protocol):
    """The cache of a pass that reads sequences from their beginning."""

    layout: Layout
    """Where the sequences lie, with the learned positions at the head of each."""


@dataclass(frozen=True)
class Preambled(Layout):
    """Sequences of which each begins with `preamble` learned positions. What a layout tells is told of all W places."""

    preamble: int
    rows: tuple[int, int]
    """B and T of the tokens that were given."""

    @staticmethod
    def around(lengths: Sequence[int], preamble: int, rows: tuple[int, int], device: torch.device) -> Preambled:
        """The layout of sequences of so many tokens behind the learned positions."""
        whole = Layout.packed([length + preamble for length in lengths], device)
        return Preambled(whole.lengths, whole.positions_T, preamble, rows)

    @cached_property
    def real_T(self) -> Tensor:
        """Place of each token."""
        return self._placed(self._real())

    @cached_property
    def order_W(self) -> Tensor:
        """Which of all learned positions, sequence after sequence, and then all tokens stands at each place."""
        order = numpy.empty(sum(self.lengths), dtype=numpy.int64)
        order[numpy.concatenate([self._learned(), self._real()])] = numpy.arange(order.size)
        return self._placed(order)

    @cached_property
    def inverse_W(self) -> Tensor:
        """Place of each of these."""
        return self._placed(numpy.concatenate([self._learned(), self._real()]))

    def lengthened(self, states_T: Tensor, learned_P: Tensor) -> Tensor:
        """(W, ...) from (T, ...): each sequence's states behind the learned ones, (P, ...), whose gradient is summed in their own type."""
        copies_V = learned_P.expand(len(self.lengths), *learned_P.shape).to(states_T.dtype).flatten(0, 1)
        return pad(torch.cat([copies_V, states_T]), self.order_W, self.inverse_W)

    def shortened(self, states_W: Tensor) -> Tensor:
        """(T, ...) from (W, ...): without what stands at learned positions."""
        return unpad(states_W, self.real_T)

    def _real(self) -> numpy.ndarray[Any, Any]:
        tokens = numpy.asarray(self.lengths, dtype=numpy.int64) - self.preamble
        return numpy.arange(tokens.sum()) + self.preamble * numpy.repeat(numpy.arange(1, tokens.size + 1), tokens)

    def _learned(self) -> numpy.ndarray[Any, Any]:
        ends = numpy.cumsum(self.lengths, dtype=numpy.int64)
        return ((ends - self.lengths)[:, None] + numpy.arange(self.preamble)).reshape(-1)


class Vectors(nn.Module):
    """The learned vectors, (P, O): themselves, or while training what a network makes of P smaller ones, (P, I)."""

    def __init__(self, start_PI: Tensor, network: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(start_PI)
        self.network = network

    def forward(self) -> Tensor:
        """(P, O), computed in the weights' own type also under autocast: it is little work, and it is what will be saved."""
        if self.network is None:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            made_PO: Tensor = self.network(self.weight)
        return made_PO

    @torch.no_grad()
    def put(self, vectors_PO: Tensor) -> None:
        """Become these vectors, without a network. ModelError where the sizes differ."""
        now_PO = self()
        if vectors_PO.shape != now_PO.shape:
            raise ModelError("learned positions do not fit the model", found=tuple(vectors_PO.shape), expected=tuple(now_PO.shape))
        self.weight = nn.Parameter(vectors_PO.to(now_PO, copy=True), self.weight.requires_grad)
        self.network = None


class Preamble(nn.Module):
    """What stands before every sequence."""

    def __init__(self, tokens: int, vectors: Vectors) -> None:
        super().__init__()
        self.tokens, self.vectors = tokens, vectors

    @abstractmethod
    def opened(self, tokens_BT: Tensor, whole: Preambled, cache: Cache | None) -> tuple[Tensor, Cache | None]:
        """The tokens and the cache that the decoder gets, one row."""

    @abstractmethod
    def closed(self, hidden_1ND: Tensor, whole: Preambled) -> Tensor:
        """The hidden states of the tokens, (B, T, D), from those that the decoder gave."""

    @abstractmethod
    def begin(self, decoder: Transformer, ids: Sequence[int]) -> None:
        """Start at what the decoder makes of P ids."""

    def enter(self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The hook on the way in."""
        tokens_BT, layout, cache = _named(*arguments, **keywords)
        rows = (tokens_BT.shape[0], tokens_BT.shape[1])
        if cache is None:
            if layout is not None and layout.trunks:
                raise ValueError("learned positions stand before whole sequences; write out those that share a beginning")
            lengths = (rows[1],) * rows[0] if layout is None else layout.lengths
        elif isinstance(cache, Reader):
            lengths = tuple(length - self.tokens for length in cache.layout.lengths)
        else:
            return arguments, keywords
        whole = Preambled.around(lengths, self.tokens, rows, tokens_BT.device)
        tokens_BT, cache = self.opened(tokens_BT, whole, cache)
        return (tokens_BT, whole, cache), {}

    def leave(self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], hidden_BTD: Tensor) -> Tensor:
        """The hook on the way out; `arguments` are those that `enter` gave."""
        whole = _named(*arguments, **keywords)[1]
        if not isinstance(whole, Preambled):
            return hidden_BTD
        return self.closed(hidden_BTD, whole)


def _named(tokens_BT: Tensor, layout: Layout | None = None, cache: Cache | None = None) -> tuple[Tensor, Layout | None, Cache | None]:
    """The decoder's arguments, however they were given."""
    return tokens_BT, layout, cache


def decoder_for(model: nn.Module, tokens: int) -> Transformer:
    """The model as a decoder that takes so many learned positions. Raises ConfigError."""
    if not isinstance(model, Transformer):
        raise ConfigError("adapter.method", found=f"learned positions before {type(model).__name__}", expected="a decoder")
    if (earlier := _find(model)) is not None:
        raise ConfigError("adapter.method", found=f"a model that has {earlier.tokens} learned positions already", expected="one without")
    if tokens >= model.config.context_length:
        limit = f"under {model.config.context_length}, the model's context length"
        raise ConfigError("adapter.prompt.tokens", found=tokens, expected=limit, fix="Set fewer.")
    return model


def install(model: Transformer, preamble: Preamble) -> None:
    """Hook a preamble that is one of the model's modules into its passes."""
    model.register_forward_pre_hook(preamble.enter, with_kwargs=True)
    model.register_forward_hook(preamble.leave, with_kwargs=True)


def preamble_of(model: nn.Module) -> int:
    """Learned positions before every sequence of a model, which count in its context length; 0 for a model without."""
    found = _find(model)
    return 0 if found is None else found.tokens


def room_of(model: Transformer) -> int:
    """Tokens that a sequence may have: the context length less the learned positions."""
    return model.config.context_length - preamble_of(model)


def start_at(model: nn.Module, ids: Sequence[int]) -> None:
    """Let the learned positions start as a text, given by its ids, is to the model; repeated or cut to their number.

    Raises ConfigError for no ids, and where a network makes the vectors.
    """
    found = _find(model)
    assert isinstance(model, Transformer) and found is not None, "for models with learned positions"
    if not ids:
        raise ConfigError("adapter.prompt.text", found="a text without tokens", expected="one token at least")
    if found.vectors.network is not None:
        fix = "Set adapter.method=prompt, or prefix with hidden=0."
        raise ConfigError("adapter.prompt.text", found="a text for vectors that a network makes", fix=fix)
    found.begin(model, [ids[place % len(ids)] for place in range(found.tokens)])


def final_vectors(model: nn.Module) -> Tensor:
    """What was learned, without the network that made it, on the CPU: (P, D), or of a prefix (P, 2 L K E), in PEFT's order."""
    found = _find(model)
    assert found is not None, "for models with learned positions"
    vectors_PO: Tensor = found.vectors()
    return vectors_PO.detach().cpu().clone()


def put_vectors(model: nn.Module, vectors_PO: Tensor) -> None:
    """Put what `final_vectors` gave in the place of the learned vectors and of the network. ModelError where the sizes differ."""
    found = _find(model)
    assert found is not None, "for models with learned positions"
    found.vectors.put(vectors_PO)


def _find(model: nn.Module) -> Preamble | None:
    return next((module for module in model.modules() if isinstance(module, Preamble)), None)
