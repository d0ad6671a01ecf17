"""What a policy is improved by: advantages, the clipped losses, estimates of how far it went from its reference.

    A_t = sum_k (gamma lambda)^k delta_(t+k),   delta_t = r_t + gamma V_(t+1) - V_t       (Schulman et al., 2016, arXiv:1506.02438, eq. 16)
    r_t = -beta KL_t,   and the answer's score at its last token                          (Ziegler et al., 2019, arXiv:1909.08593, eq. 2)
    L   = max(-A rho, -A clip(rho, 1 - e, 1 + e)),   rho = pi / pi_old                    (Schulman et al., 2017, arXiv:1707.06347, eq. 7)

An answer's state is its tokens so far, its action the next token; nothing comes after its last one, whether it ended or was cut.

Shapes: S answers, L tokens of the longest, K tokens of all, G prompts, N answers to each. Behind an answer's end (S, L) holds zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

KLEstimator = Literal["k1", "k2", "k3"]
SMALL = 1e-8
"""Added to a variance."""
DEVIATION = 1e-4
"""Added to a deviation of a group's rewards, which may all be the same."""
ADAPTATION = 0.2
"""The furthest that the adaptive coefficient is taken to be from its target (Ziegler et al., 2019, section 2.2)."""


def padded(each_K: Tensor, lengths: Sequence[int]) -> Tensor:
    """(S, L) with zeros behind each answer's end, from the tokens of all answers one after another."""
    rows: Tensor = pad_sequence(list(each_K.split_with_sizes(list(lengths))), batch_first=True)
    return rows


def flat(each_SL: Tensor, lengths: Sequence[int]) -> Tensor:
    """(K,) again."""
    places_L = torch.arange(each_SL.shape[1], device=each_SL.device)
    return each_SL[places_L < torch.tensor(list(lengths), device=each_SL.device)[:, None]]


def kl_estimate(own: Tensor, other: Tensor, kind: KLEstimator = "k1") -> Tensor:
    """KL(own || other) at tokens that `own` drew, from both log-probabilities (Schulman, "Approximating KL divergence", 2020).

    With x = log(other / own): k1 = -x is unbiased; k2 = x^2 / 2 is biased and varies little; k3 = e^x - 1 - x is unbiased and never
    negative.
    """
    difference = other - own
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference.square() / 2
    return difference.expm1() - difference


def shaped_rewards(scores_S: Tensor, kl_K: Tensor, lengths: Sequence[int], beta: float) -> Tensor:
    """The reward of every token, (S, L): -beta times its divergence, and at an answer's last token its score as well."""
    rewards_SL = padded(-beta * kl_K, lengths)
    last_S1 = torch.tensor(list(lengths), device=kl_K.device)[:, None] - 1
    return rewards_SL.scatter_add(1, last_S1, scores_S[:, None].to(rewards_SL.dtype))


def generalized_advantages(rewards_SL: Tensor, values_SL: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns (advantage + value), (S, L) each; zeros behind an answer's end give zeros there.

    With values of zero and gamma = lambda = 1 an advantage is the sum of the rewards from its token on.
    """
    advantages_SL = torch.zeros_like(rewards_SL)
    after_S = next_S = rewards_SL.new_zeros(len(rewards_SL))
    for place in reversed(range(rewards_SL.shape[1])):
        delta_S = rewards_SL[:, place] + gamma * next_S - values_SL[:, place]
        after_S = delta_S + gamma * lam * after_S
        advantages_SL[:, place] = after_S
        next_S = values_SL[:, place]
    return advantages_SL, advantages_SL + values_SL


def whitened(values: Tensor, mask: Tensor | None = None, *, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) of the entries under `mask` (bool), the variance with Bessel's correction; 0 elsewhere.

    shift_mean=True removes the mean, False puts it back after dividing, as TRL means it; in torchtune the name means the opposite.
    """
    chosen = values if mask is None else values[mask]
    mean = chosen.mean()
    variance = (chosen - mean).square().sum() / max(chosen.numel() - 1, 1)
    scaled = (values - mean) * torch.rsqrt(variance + SMALL)
    scaled = scaled if shift_mean else scaled + mean
    return scaled if mask is None else torch.where(mask, scaled, torch.zeros_like(scaled))


def group_advantages(rewards_GN: Tensor, *, divide: bool = True) -> Tensor:
    """Each reward less the mean of its group, over the group's deviation (GRPO: Shao et al., 2024, arXiv:2402.03300, section 4.1.2).

    divide=False leaves the deviation out, which weighs hard and easy prompts alike (Dr. GRPO: Liu et al., 2025, arXiv:2503.20783, 3.2).
    """
    centred_GN = rewards_GN - rewards_GN.mean(1, keepdim=True)
    return centred_GN / (rewards_GN.std(1, keepdim=True) + DEVIATION) if divide else centred_GN


def leave_one_out(rewards_GN: Tensor) -> Tensor:
    """Each reward less the mean of the others of its group (RLOO: Ahmadian et al., 2024, arXiv:2402.14740, section 2.2); N is above 1."""
    others_GN = (rewards_GN.sum(1, keepdim=True) - rewards_GN) / (rewards_GN.shape[1] - 1)
    return rewards_GN - others_GN


@dataclass(frozen=True)
class Clipped:
    """A clipped loss, summed."""

    total: Tensor
    """Weighted sum over the tokens."""
    clipped: Tensor
    """Number of tokens where the clipped side counts, without gradient."""


def clipped_policy_loss(
    own_K: Tensor, old_K: Tensor, advantages_K: Tensor, low: float = 0.2, high: float = 0.2, weights_K: Tensor | None = None
) -> Clipped:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) of every token, times its weight, summed.

    `high` above `low` lets unlikely tokens rise further (DAPO: Yu et al., 2025, arXiv:2503.14476, section 3.1).
    """
    ratio_K = (own_K - old_K).exp()
    free_K, held_K = -advantages_K * ratio_K, -advantages_K * ratio_K.clamp(1 - low, 1 + high)
    each_K = torch.maximum(free_K, held_K)
    total = each_K.sum() if weights_K is None else each_K @ weights_K
    return Clipped(total, (held_K > free_K).sum().detach())


def clipped_value_loss(values_K: Tensor, old_K: Tensor, returns_K: Tensor, clip: float = 0.2) -> Clipped:
    """max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2 of every token, summed."""
    near_K = torch.clamp(values_K, old_K - clip, old_K + clip)
    free_K, held_K = (values_K - returns_K).square(), (near_K - returns_K).square()
    return Clipped(0.5 * torch.maximum(free_K, held_K).sum(), (held_K > free_K).sum().detach())


def explained_variance(values_K: Tensor, returns_K: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 where the values are the returns, 0 where they say nothing of them, below 0 where they mislead."""
    variance = returns_K.double().var(correction=0)
    if not float(variance):
        return 0.0
    return float(1 - (returns_K.double() - values_K.double()).var(correction=0) / variance)


def adapted_coefficient(beta: float, kl: float, target: float, answers: int, horizon: float) -> float:
    """The next beta after so many answers whose mean divergence (nats an answer) was `kl` (Ziegler et al., 2019, section 2.2).

    beta (1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon). A fixed coefficient needs no function.
    """
    error = min(max(kl / target - 1, -ADAPTATION), ADAPTATION)
    return beta * (1 + error * answers / horizon)
