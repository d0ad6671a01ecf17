"""Log-probabilities of given tokens, one by one and with a gradient, without ever holding all logits.

    l_n = log softmax(W h_n / tau)[y_n]          H_n = - sum_v p_v log p_v
    dl_n/dlogits_n = (onehot(y_n) - p_n) / tau

What preferences and policies are learned from: they weigh each sequence's or token's log-probability by what is known only when all are
there, so unlike the cross-entropy's (language_model.py) the gradient cannot be made on the way. A chunk's logits are made again for it;
where all of them are few they are kept instead.

Shapes: K positions, D hidden size, V vocabulary, C positions of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luyen.objectives.language_model import CHUNK_LOGITS

KEPT_LOGITS = 1 << 25
"""Largest number of logits kept for the backward pass: 128 MiB in fp32."""


def target_log_probabilities(
    hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, temperature: float = 1.0, entropy_K: Tensor | None = None
) -> Tensor:
    """Log-probability (nats) of each target under softmax(hidden @ weight.T / temperature), (K,), fp32 or fp64 for fp64 inputs.

    Gradients flow to `hidden_KD` and `weight_VD`; there is no second derivative. `entropy_K`, where it is given, receives the entropy
    (nats) of each distribution, without gradient. Logits are made in the autocast type where autocast is on.
    """
    device = hidden_KD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_KD, weight_VD = hidden_KD.to(dtype), weight_VD.to(dtype)
    with torch.autocast(device, enabled=False):
        found_K: Tensor = _LogProbabilities.apply(  # type: ignore[no-untyped-call]
            hidden_KD, weight_VD, targets_K, 1 / temperature, entropy_K, torch.is_grad_enabled()
        )
    return found_K


class _LogProbabilities(torch.autograd.Function):
    """Chunk by chunk; the probabilities of a chunk are kept, or made again in backward from the kept normalisers."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, sharpness: float, entropy_K: Tensor | None, gradients: bool
    ) -> Tensor:
        """l, with each position's log of the sum of exponentials kept for backward."""
        exact = torch.promote_types(hidden_KD.dtype, torch.float32)
        positions, vocabulary = hidden_KD.shape[0], weight_VD.shape[0]
        found_K, normaliser_K = hidden_KD.new_empty(2, positions, dtype=exact)
        keep = gradients and any(ctx.needs_input_grad[:2]) and positions * vocabulary <= KEPT_LOGITS
        kept = []
        for rows in _chunks(positions, vocabulary):
            logits_CV = _logits(hidden_KD[rows], weight_VD, sharpness, exact)
            normaliser_K[rows] = logits_CV.logsumexp(-1)
            found_K[rows] = logits_CV.gather(1, targets_K[rows, None]).squeeze(1) - normaliser_K[rows]
            if keep or entropy_K is not None:
                probability_CV = logits_CV.sub_(normaliser_K[rows, None])
                if entropy_K is not None:
                    entropy_K[rows] = -(probability_CV.exp() * probability_CV.clamp_min(-torch.finfo(exact).max)).sum(-1)
                if keep:
                    kept.append(probability_CV.exp_())
        ctx.save_for_backward(hidden_KD, weight_VD, targets_K, normaliser_K, *kept)
        ctx.sharpness = sharpness
        return found_K  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_K: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """Both gradients, chunk by chunk."""
        hidden_KD, weight_VD, targets_K, normaliser_K, *kept = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_slope_KD = torch.empty_like(hidden_KD) if wants_hidden else None
        # Summed over many chunks, so never in half precision.
        weight_slope_VD = torch.zeros_like(weight_VD, dtype=normaliser_K.dtype) if wants_weight else None
        for number, rows in enumerate(_chunks(hidden_KD.shape[0], weight_VD.shape[0])):
            if kept:
                slope_CV = kept[number].mul(-ctx.sharpness * slope_K[rows, None])
            else:
                logits_CV = _logits(hidden_KD[rows], weight_VD, ctx.sharpness, normaliser_K.dtype)
                slope_CV = logits_CV.sub_(normaliser_K[rows, None]).exp_().mul_(-ctx.sharpness * slope_K[rows, None])
            slope_CV.scatter_add_(1, targets_K[rows, None], ctx.sharpness * slope_K[rows, None])
            slope_CV = slope_CV.to(hidden_KD.dtype)
            if hidden_slope_KD is not None:
                hidden_slope_KD[rows] = slope_CV @ weight_VD
            if weight_slope_VD is not None:
                weight_slope_VD += slope_CV.T @ hidden_KD[rows]
        weight_slope = None if weight_slope_VD is None else weight_slope_VD.to(weight_VD.dtype)
        return hidden_slope_KD, weight_slope, None, None, None, None


def _chunks(positions: int, vocabulary: int) -> list[slice]:
    size = max(64, CHUNK_LOGITS // vocabulary)
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def _logits(hidden_CD: Tensor, weight_VD: Tensor, sharpness: float, exact: torch.dtype) -> Tensor:
    """Logits over the temperature in `exact`, in a tensor of their own."""
    logits_CV = (hidden_CD @ weight_VD.T).to(exact)
    return logits_CV if sharpness == 1 else logits_CV.mul_(sharpness)
