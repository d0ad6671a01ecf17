"""Choosing the next token from scores.

Order, as in transformers: repetition penalty (Keskar et al., 2019, arXiv:1909.05858, section 4.1), temperature, top-k
(Fan et al., 2018), top-p (Holtzman et al., 2020, arXiv:1904.09751), min-p (Nguyen et al., 2024, arXiv:2407.01082).

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from luyen.inference.config import SamplingConfig

__all__ = ["SamplingConfig", "choose", "penalise", "probabilities"]


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Scores of seen tokens (bool mask), divided by the penalty where positive and multiplied where negative."""
    penalised_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalised_BV, logits_BV)


def probabilities(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """The distribution sampled from, (B, V) in float32; temperature is above 0. Tokens equal to the k-th stay in top-k."""
    logits_BV = logits_BV.float() / config.temperature
    if 0 < config.top_k < logits_BV.shape[-1]:
        smallest_B1 = logits_BV.topk(config.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    probability_BV = logits_BV.softmax(-1)
    if config.top_p < 1:
        probability_BV = probability_BV.masked_fill(~nucleus(probability_BV, config.top_p), 0.0)
    if config.min_p > 0:
        largest_B1 = probability_BV.amax(-1, keepdim=True)
        probability_BV = probability_BV.masked_fill(probability_BV < config.min_p * largest_B1, 0.0)
    return probability_BV / probability_BV.sum(-1, keepdim=True)


def nucleus(probability_BV: Tensor, share: float) -> Tensor:
    """Whether a token is among the fewest most likely ones that reach `share` together, (B, V); of equally likely ones the first are.

    Only the values are sorted: which token stands where is not needed, and torch's sort of both takes as long as a step of a small model.
    """
    sorted_BV = _descending(probability_BV)
    counts_B1 = (sorted_BV.cumsum(-1) - sorted_BV < share).sum(-1, keepdim=True)
    smallest_B1 = sorted_BV.gather(-1, counts_B1 - 1)
    inside_BV = probability_BV >= smallest_B1
    if bool((inside_BV.sum(-1, keepdim=True) > counts_B1).any()):
        equal_BV = probability_BV == smallest_B1
        room_B1 = counts_B1 - (probability_BV > smallest_B1).sum(-1, keepdim=True)
        inside_BV &= ~equal_BV | (equal_BV.cumsum(-1) <= room_B1)
    return inside_BV


def _descending(values_BV: Tensor) -> Tensor:
    """Every row sorted; on a CPU by numpy, which is many times as fast as torch there."""
    if values_BV.device.type != "cpu":
        return values_BV.sort(descending=True).values
    return torch.from_numpy(numpy.sort(values_BV.numpy(), -1)).flip(-1)


def _likeliest(logits_BV: Tensor) -> Tensor:
    """The first of the largest scores of each row, int64; on a CPU by numpy, as above."""
    if logits_BV.device.type != "cpu" or logits_BV.dtype not in (torch.float32, torch.float64):
        return logits_BV.argmax(-1)
    return torch.from_numpy(logits_BV.numpy().argmax(-1))


def draw(probability_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One token per row by the inverse of the cumulative distribution at uniform_B in [0, 1); never one of probability 0."""
    # In float64 on the CPU: the same draw on every device, and Apple's GPUs have no float64.
    cumulative_BV = probability_BV.cpu().double().cumsum(-1)
    threshold_B1 = uniform_B.cpu()[:, None].double() * cumulative_BV[:, -1:]
    found_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True)[:, 0].clamp_max(probability_BV.shape[-1] - 1)
    return found_B.to(probability_BV.device)


def choose(logits_BV: Tensor, config: SamplingConfig, uniform_B: Tensor | None, seen_BV: Tensor | None) -> Tensor:
    """The next token of each row, int64. `uniform_B` is needed above temperature 0, `seen_BV` with a repetition penalty."""
    if seen_BV is not None:
        logits_BV = penalise(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0 or uniform_B is None:
        return _likeliest(logits_BV)
    return draw(probabilities(logits_BV, config), uniform_B)
