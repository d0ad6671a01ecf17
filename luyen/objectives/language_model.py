"""Cross-entropy of the next token, from hidden states, without ever holding all logits.

For a hidden state h and the rows w_v of the head, the loss at target y is  log sum_v exp(h.w_v) - h.w_y,  and its gradient with
respect to the logits is  softmax(logits) - onehot(y).  Both are known as soon as a chunk's logits are, so each chunk's logits are
made once, turned into their own gradient in place, multiplied into the gradients of h and w, and dropped: three matrix products as
in the plain way, and `chunk_size * V` numbers instead of several times `N * V` (the idea of Liger-Kernel, arXiv:2410.10989, 3.2).

Shapes: N positions, K positions that have a target, D hidden size, V vocabulary, C positions of one chunk.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
"""A target that is not trained on; the same number as in torch and transformers."""
CHUNK_LOGITS = 1 << 23
"""Logits held at a time when no chunk size is given: 32 MiB in fp32."""
SMALLEST_LOG = -80.0
"""Below this the logarithm of a probability is taken from the scores: fp32 has no normal number under exp(-87)."""
Way = Callable[[Tensor, Tensor, Tensor, int | None, Tensor | None, Tensor | None], Tensor]
"""`linear_cross_entropy` itself, or what takes its place."""
OfTargets = Callable[[Tensor, Tensor, Tensor, int | None, Tensor | None], Tensor]
"""The same where every position has a target."""
_other_way: ContextVar[Way | None] = ContextVar("other_way", default=None)


@contextlib.contextmanager
def computed_by(way: Way | None) -> Iterator[None]:
    """Within the block `way` computes what `linear_cross_entropy` is asked for, from the same arguments; None: the function itself does.

    For who has a head or hidden states that are not whole in this process, or shares the work: the result must be the same.
    """
    before = _other_way.set(way)
    try:
        yield
    finally:
        _other_way.reset(before)


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_size: int | None = None,
    each_N: Tensor | None = None,
    positions_K: Tensor | None = None,
) -> Tensor:
    """Sum over positions of the negative log-likelihood (nats) of the target under softmax(hidden @ weight.T); a scalar.

    Positions whose target is -100 cost nothing: they are left out before the head. `chunk_size` is the number of positions whose
    logits exist at once. Gradients flow to `hidden_ND` and `weight_VD`; there is no second derivative. Logits are made in the
    autocast type where autocast is on; the loss is fp32, or fp64 for fp64 inputs. `each_N`, where it is given, receives the loss of every
    position that has a target, without gradient; the others stay as they are. `positions_K` are the positions that have a target, in
    order: who knows them spares the look for them, for which the host must wait until a GPU has come that far.
    """
    way = _other_way.get() or functools.partial(at_targets, whole_cross_entropy)
    return way(hidden_ND, weight_VD, targets_N, chunk_size, each_N, positions_K)


def at_targets(
    loss: OfTargets,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_size: int | None,
    each_N: Tensor | None,
    positions_K: Tensor | None,
) -> Tensor:
    """`loss` of the positions that have a target, and of no others; the arguments are those of `linear_cross_entropy`."""
    if positions_K is None:
        positions_K = target_positions(targets_N)
    if positions_K.shape == targets_N.shape:
        return loss(hidden_ND, weight_VD, targets_N, chunk_size, each_N)
    hidden_KD, targets_K = hidden_ND.index_select(0, positions_K), targets_N.index_select(0, positions_K)
    each_K = None if each_N is None else each_N.new_empty(targets_K.shape)
    total = loss(hidden_KD, weight_VD, targets_K, chunk_size, each_K)
    if each_N is not None and each_K is not None:
        each_N[positions_K] = each_K
    return total


def target_positions(targets_N: Tensor) -> Tensor:
    """The positions that have a target, (K,). How many there are the host must ask a GPU, and wait."""
    return (targets_N != IGNORED).nonzero().squeeze(1)


def whole_cross_entropy(hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, chunk_size: int | None, each_K: Tensor | None) -> Tensor:
    """`linear_cross_entropy` in this process alone, where every position has a target."""
    device = hidden_KD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_KD, weight_VD = hidden_KD.to(dtype), weight_VD.to(dtype)
    size = chunk_size or max(64, CHUNK_LOGITS // weight_VD.shape[0])
    with torch.autocast(device, enabled=False):
        total: Tensor = _LinearCrossEntropy.apply(hidden_KD, weight_VD, targets_K, size, torch.is_grad_enabled(), each_K)  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over the chunks; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_size: int, gradients: bool, each_N: Tensor | None
    ) -> Tensor:
        """The summed loss; both gradients are made on the way and kept for `backward`, each position's loss goes to `each_N`."""
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden_ND.device)
        wants_hidden, wants_weight = (gradients and needed for needed in ctx.needs_input_grad[:2])
        hidden_grad_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        # Summed over many chunks, so never in half precision.
        weight_grad_VD = torch.empty_like(weight_VD, dtype=exact) if wants_weight else None
        if weight_grad_VD is not None and not hidden_ND.shape[0]:
            weight_grad_VD.zero_()
        for start in range(0, hidden_ND.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            hidden_CD, targets_C1 = hidden_ND[rows], targets_N[rows, None]
            scores_CV = (hidden_CD @ weight_VD.T).to(exact)
            log_C1 = _to_probabilities(scores_CV, targets_C1)
            if log_C1.device.type == "cpu" and bool((hard_C := log_C1[:, 0] < SMALLEST_LOG).any()):
                hard_HV = (hidden_CD[hard_C] @ weight_VD.T).to(exact)
                log_C1[hard_C] = hard_HV.log_softmax(1).gather(1, targets_C1[hard_C])
            total -= log_C1.sum()
            if each_N is not None:
                each_N[rows] = -log_C1[:, 0]
            if not (wants_hidden or wants_weight):
                continue
            scores_CV.scatter_add_(1, targets_C1, scores_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
            slope_CV = scores_CV.to(weight_VD.dtype)
            if hidden_grad_ND is not None:
                torch.mm(slope_CV, weight_VD, out=hidden_grad_ND[rows])
            if weight_grad_VD is not None:
                _add_product(weight_grad_VD, slope_CV.T, hidden_CD, first=start == 0)
        ctx.save_for_backward(hidden_grad_ND, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        hidden = None if hidden_grad_ND is None else (hidden_grad_ND.to(slope.dtype) * slope).to(hidden_grad_ND.dtype)
        weight = None if weight_grad_VD is None else (weight_grad_VD * slope).to(ctx.weight_dtype)
        return hidden, weight, None, None, None, None


def _to_probabilities(scores_CV: Tensor, targets_C1: Tensor) -> Tensor:
    """Turn scores into probabilities in place. Returns the logarithm of each target's, (C, 1).

    A processor takes that of the probability, which saves a second pass of exponentials; where it is below SMALLEST_LOG the probability
    is rounded to few bits or to 0, and the caller does those few rows again.
    """
    if scores_CV.device.type == "cpu":
        torch.softmax(scores_CV, 1, out=scores_CV)  # in place: it reads a row before it writes it
        return scores_CV.gather(1, targets_C1).log_()
    torch.log_softmax(scores_CV, 1, out=scores_CV)
    found_C1 = scores_CV.gather(1, targets_C1)
    scores_CV.exp_()
    return found_C1


def _add_product(sum_VD: Tensor, slope_VC: Tensor, hidden_CD: Tensor, first: bool) -> None:
    """sum += slope @ hidden, or sum = slope @ hidden where it is the first; the sum may be of a wider type."""
    if sum_VD.dtype != hidden_CD.dtype:
        product_VD = slope_VC @ hidden_CD
        sum_VD.copy_(product_VD) if first else sum_VD.add_(product_VD)
    else:
        torch.mm(slope_VC, hidden_CD, out=sum_VD) if first else sum_VD.addmm_(slope_VC, hidden_CD)
