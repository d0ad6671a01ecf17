"""Context parallelism: the tokens of a batch are dealt to ranks that have the same weights; each layer gathers keys and values.

As Llama 3 does (Dubey et al., 2024, arXiv:2407.21783, section 3.3.2): a gathering for each layer instead of a ring, because what a query
may see is irregular with packed documents, and keys and values are small with grouped heads. T tokens are cut into 2R pieces, and rank r
takes pieces r and 2R - 1 - r, so that all have equally many tokens and, in a long document, about equally much to look at.

torch.distributed.tensor.experimental.context_parallel (torch 2.13) does not fit: it has no kernel for CPUs, wants lengths that 2R divides,
and takes no mask, so no packed documents (docs/parallel.md).

Only passes with gradient are split; others (evaluations, written text) every rank does alike, in whole.

Shapes: T flat tokens, R ranks, O own tokens, S = the most own tokens of any rank, H query heads, K key-value heads, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from luyen.core.device import to_device
from luyen.core.errors import ConfigError
from luyen.engine.parallel.mesh import check_dense
from luyen.engine.parallel.sequence import gather, gather_equal, lengthen, scale_gradient
from luyen.models.attention import Cache, Layout, packed_attention, seen
from luyen.models.transformer import Transformer


def join(model: nn.Module, group: dist.ProcessGroup) -> None:
    """From now on the ranks of `group` share every pass of `model` that has a gradient. Raises ConfigError for what is no decoder.

    Gradients of parameters are then parts, whose sum over the group is the gradient.
    """
    if type(model) is not Transformer:  # what more a subclass makes of hidden states every rank makes alike: a sum would count it R times
        fix = "Use train.parallel.data or shard."
        raise ConfigError("train.parallel.context", found=type(model).__name__, expected="a decoder", fix=fix)
    check_dense("train.parallel.context", model.config)
    model.forward = functools.partial(_forward, model.forward, group)  # type: ignore[method-assign]
    model.logits = functools.partial(_logits, model.logits, group.size())  # type: ignore[method-assign]


def leave(model: nn.Module) -> None:
    """Undo `join`."""
    for name in ("forward", "logits"):
        model.__dict__.pop(name, None)


def _forward(
    forward: Callable[..., Tensor], group: dist.ProcessGroup, tokens_BT: Tensor, layout: Layout | None = None, cache: Cache | None = None
) -> Tensor:
    """Hidden states of all tokens, of which this rank computes its own."""
    if cache is not None or not torch.is_grad_enabled():
        return forward(tokens_BT, layout, cache)
    if layout is not None and layout.trunks:
        raise ValueError("sequences that share a beginning are not split over ranks; write them out")
    lengths = layout.lengths if layout is not None else (tokens_BT.shape[1],) * tokens_BT.shape[0]
    share = Share(lengths, group, tokens_BT.device)
    own_1OD = forward(tokens_BT.reshape(1, -1)[:, share.own_O], cache=share)
    whole_TD = gather_equal(lengthen(own_1OD[0], share.longest), group)[share.place_T]
    return whole_TD.view(*tokens_BT.shape, -1)


def _logits(logits: Callable[[Tensor], Tensor], ranks: int, hidden: Tensor) -> Tensor:
    """Logits that every rank makes alike: only one part in `ranks` of the head's gradient is this rank's, all of the hidden states'."""
    return scale_gradient(logits(scale_gradient(hidden, float(ranks))), 1 / ranks)


@dataclass(frozen=True)
class Work:
    """Own tokens that attend in one call: `tokens` of them from `first` on, which are flat tokens up to `end`, see keys from `start` on."""

    first: int
    tokens: int
    start: int
    end: int
    lengths: tuple[int, ...]
    """Of the sequences that begin here, maybe cut at the end; () where the tokens go on with one that began before them, at `start`."""


class Share:
    """One rank's tokens in a pass, and how they attend; the decoder asks it as it asks a key-value cache."""

    def __init__(self, lengths: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, ranks, total = group, group.size(), sum(lengths)
        ranges = [pieces(total, ranks, rank) for rank in range(ranks)]
        self.longest = max(sum(map(len, both)) for both in ranges)
        flat = [torch.cat([torch.arange(piece.start, piece.stop) for piece in both]) for both in ranges]
        self.own_O = to_device(flat[group.rank()], device)
        place_T = torch.empty(total, dtype=torch.int64)
        for rank, tokens in enumerate(flat):
            place_T[tokens] = rank * self.longest + torch.arange(len(tokens))
        self.place_T = to_device(place_T, device)
        """Where each flat token stands in the ranks' tokens one after another, each lengthened to `longest`."""
        starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
        positions_T = torch.arange(total) - starts.repeat_interleave(torch.tensor(lengths))
        self.positions_1O = to_device(positions_T[flat[group.rank()]][None], device)
        self.work = list(work(lengths, ranges[group.rank()]))
        self.layouts = [Layout.packed(item.lengths, device) if item.lengths else None for item in self.work]

    @property
    def positions_BT(self) -> Tensor:
        """Position of each own token in its sequence, (1, O)."""
        return self.positions_1O

    def attend(self, layer: int, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        """What the own tokens see in their sequences, on whatever rank that stands. B is 1, T is O."""
        both_O2KE = torch.cat([key_BTKE[0], value_BTKE[0]], 1)
        both_T2KE = gather(lengthen(both_O2KE, self.longest), self.group)[self.place_T]
        found = [query_BTHE[0, :0] + both_T2KE[:0, :1]]  # so that ranks without tokens take part in the backward pass, where ranks talk too
        for item, layout in zip(self.work, self.layouts, strict=True):
            query_NHE = query_BTHE[0, item.first : item.first + item.tokens]
            key_MKE, value_MKE = both_T2KE[item.start : item.end].chunk(2, 1)
            if layout is not None:
                found.append(packed_attention(query_NHE, key_MKE, value_MKE, layout, window))
            else:
                found.append(continued_attention(query_NHE, key_MKE, value_MKE, window))
        return torch.cat(found)[None]


def pieces(total: int, ranks: int, rank: int) -> tuple[range, range]:
    """The two pieces of so many flat tokens that a rank has; a piece is empty where there are fewer tokens than pieces."""
    ends = [total * number // (2 * ranks) for number in range(2 * ranks + 1)]
    return tuple(range(ends[number], ends[number + 1]) for number in (rank, 2 * ranks - 1 - rank))  # type: ignore[return-value]


def work(lengths: Sequence[int], own: Sequence[range]) -> Iterator[Work]:
    """The attention of own tokens in their order: what goes on with an earlier sequence alone, all that begin in a piece together."""
    starts = [0, *accumulate(lengths)]
    first = 0
    for piece in own:
        inside = [number for number in range(len(lengths)) if starts[number] < piece.stop and starts[number + 1] > piece.start]
        if inside and starts[inside[0]] < piece.start:
            end = min(starts[inside[0] + 1], piece.stop)
            yield Work(first, end - piece.start, starts[inside[0]], end, ())
            first, inside = first + end - piece.start, inside[1:]
        if inside:
            begin = starts[inside[0]]
            parts = tuple(min(starts[number + 1], piece.stop) - starts[number] for number in inside)
            yield Work(first, piece.stop - begin, begin, piece.stop, parts)
            first += piece.stop - begin


def continued_attention(query_NHE: Tensor, key_MKE: Tensor, value_MKE: Tensor, window: int = 0) -> Tensor:
    """The last N of a sequence's M tokens attend to it causally, through a window above 0 to its last ones. Returns (N, H, E)."""
    from torch.nn.attention.bias import causal_lower_right  # it loads the whole compiler, which others need not wait for

    queries = query_NHE.shape[0]
    if window:  # what the first query does not see none does
        key_MKE, value_MKE = (states[-(queries + window - 1) :] for states in (key_MKE, value_MKE))
    mask = seen(queries, key_MKE.shape[0], window, key_MKE.device) if window else causal_lower_right(queries, key_MKE.shape[0])
    attended: Tensor = functional.scaled_dot_product_attention(
        *(states.transpose(0, 1)[None] for states in (query_NHE, key_MKE, value_MKE)),
        attn_mask=mask,
        enable_gqa=query_NHE.shape[1] != key_MKE.shape[1],
    )
    return attended[0].transpose(0, 1)
