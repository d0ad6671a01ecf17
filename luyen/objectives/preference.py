"""What a policy learns from preferences, pair by pair, and from single judged answers.

With r(y) = log pi(y|x) - log ref(y|x), d = r(chosen) - r(rejected) and m(y) the mean log-probability of an answer's tokens:

    sigmoid   -log s(beta d)                                  DPO: Rafailov et al., 2023, arXiv:2305.18290, equation 7
    cdpo      -(1 - e) log s(beta d) - e log s(-beta d)       Mitchell, 2023, "A note on DPO with noisy preferences and relationship to IPO"
    robust    [-(1 - e) log s(beta d) + e log s(-beta d)] / (1 - 2e)       Chowdhury et al., 2024, arXiv:2403.00409
    hinge     max(0, 1 - beta d)                              SLiC, arXiv:2305.10425, as in Liu et al., 2023, arXiv:2309.06657
    ipo       (d - 1 / (2 beta))^2, r by token                Azar et al., 2023, arXiv:2310.12036, equation 17
    orpo      -m(chosen) - beta log s(log odds)               Hong et al., 2024, arXiv:2403.07691, equations 6 and 7
    simpo     -log s(beta (m(chosen) - m(rejected)) - gamma)  Meng et al., 2024, arXiv:2405.14734, equation 6
    kto       w (1 - s(+-beta (r(y) - z)))                    Ethayarajh et al., 2024, arXiv:2402.01306, equations 7 and 8
    apo_zero_unpaired    kto with z = 0                       D'Oosterlinck et al., 2024, arXiv:2408.06266, equation 7, answer by answer

s is the sigmoid, e the share of labels that are wrong, and the log odds are log(p / (1 - p)) with p = exp(m), of the chosen answer less
that of the rejected one. IPO divides r by the number of the answer's tokens, as its authors told TRL's that they did. z is how far the
policy is from its reference on answers to other prompts, at least 0 and without gradient; + is for a good answer and its weight, - for a
bad one.

Shapes: P pairs, N answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luyen.objectives.loss import Metrics

REFERENCE_FREE = ("orpo", "simpo")
UNPAIRED = ("kto", "apo_zero_unpaired")
AVERAGED = ("ipo", "orpo", "simpo")
"""Losses of means over an answer's tokens, whatever is set."""


@dataclass(frozen=True)
class PreferenceLoss:
    """Which loss, and its numbers; those that it does not have are not read."""

    name: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    """e above."""
    gamma: float = 0.0
    length_normalised: bool = False
    """Divide the log-probabilities of an answer by the number of its tokens."""
    sft_weight: float = 0.0
    """Weight of -m(chosen), the loss of fine-tuning on the chosen answer (Pang et al., 2024, arXiv:2404.19733, equation 1)."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether the policy is compared with another."""
        return self.name not in REFERENCE_FREE

    @property
    def averaged(self) -> bool:
        """Whether log-probabilities are means over an answer's tokens."""
        return self.length_normalised or self.name in AVERAGED


@dataclass(frozen=True)
class Answers:
    """Log-probabilities (nats) of answers, summed over their tokens."""

    policy_N: Tensor
    tokens_N: Tensor
    """How many they have."""
    reference_N: Tensor | None = None

    def ratios(self, averaged: bool) -> Tensor:
        """r of each answer, or its log-probability where there is no reference; by token where that is `averaged`, (N,)."""
        ratio_N = self.policy_N if self.reference_N is None else self.policy_N - self.reference_N
        return ratio_N / self.tokens_N if averaged else ratio_N


def sigmoid_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """DPO."""
    return -logsigmoid(loss.beta * difference_P)


def cdpo_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """Conservative DPO: the label is wrong in a share of the pairs, so no pair is to be certain."""
    wrong, scaled_P = loss.label_smoothing, loss.beta * difference_P
    return -(1 - wrong) * logsigmoid(scaled_P) - wrong * logsigmoid(-scaled_P)


def robust_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """Robust DPO: what the loss on true labels would be on average, from labels of which a share is wrong."""
    wrong, scaled_P = loss.label_smoothing, loss.beta * difference_P
    return (-(1 - wrong) * logsigmoid(scaled_P) + wrong * logsigmoid(-scaled_P)) / (1 - 2 * wrong)


def hinge_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """SLiC's hinge on DPO's rewards."""
    return (1 - loss.beta * difference_P).relu()


def ipo_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """IPO: the difference is to be 1 / (2 beta) and no more."""
    return (difference_P - 1 / (2 * loss.beta)).square()


def orpo_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """ORPO's second term, from the difference of log odds; its first, -m(chosen), is added where the answers are known."""
    return -loss.beta * logsigmoid(difference_P)


def simpo_losses(difference_P: Tensor, loss: PreferenceLoss) -> Tensor:
    """SimPO."""
    return -logsigmoid(loss.beta * difference_P - loss.gamma)


PAIRED: Mapping[str, Callable[[Tensor, PreferenceLoss], Tensor]] = MappingProxyType(
    {
        "sigmoid": sigmoid_losses, "cdpo": cdpo_losses, "robust": robust_losses, "hinge": hinge_losses, "ipo": ipo_losses,
        "orpo": orpo_losses, "simpo": simpo_losses,
    }
)  # fmt: skip
"""Each from the difference of a pair's scores."""


def pair_losses(chosen: Answers, rejected: Answers, loss: PreferenceLoss) -> Tensor:
    """The loss of each pair, (P,)."""
    scores = [side.ratios(loss.averaged) for side in (chosen, rejected)]
    if loss.name == "orpo":
        scores = [log_odds(score_P) for score_P in scores]
    losses_P = PAIRED[loss.name](scores[0] - scores[1], loss)
    sft = loss.sft_weight + (loss.name == "orpo")
    return losses_P - sft * chosen.policy_N / chosen.tokens_N if sft else losses_P


def log_odds(log_probability_N: Tensor) -> Tensor:
    """log(p / (1 - p)) of p given by its logarithm, which counts as -1e-7 at most: at 0 there are no odds."""
    below_N = log_probability_N.clamp_max(-1e-7)
    near_N, far_N = below_N.clamp_min(-math.log(2)), below_N.clamp_max(-math.log(2))
    rest_N = torch.where(below_N > -math.log(2), (-near_N.expm1()).log(), (-far_N.exp()).log1p())
    return below_N - rest_N


def answer_losses(answers: Answers, good_N: Tensor, baseline: Tensor | float, loss: PreferenceLoss) -> Tensor:
    """The loss of each judged answer, (N,): `good_N` says which are good, `baseline` is z, which apo_zero_unpaired does not read."""
    z = 0.0 if loss.name == "apo_zero_unpaired" else baseline
    sign_N = torch.where(good_N, 1.0, -1.0)
    weight_N = torch.where(good_N, loss.desirable_weight, loss.undesirable_weight)
    return weight_N * (1 - (loss.beta * sign_N * (answers.ratios(loss.averaged) - z)).sigmoid())


def divergence(answers: Answers) -> Tensor:
    """z: the mean log-ratio of answers to other prompts, at least 0, without gradient."""
    return answers.ratios(averaged=False).detach().mean().clamp_min(0)


def pair_metrics(chosen: Answers, rejected: Answers, loss: PreferenceLoss) -> Metrics:
    """Sums over pairs, without gradient: rewards, how often and by how much the chosen one's is larger, log-probabilities and drift.

    A reward is beta times the score that the loss compares. `kl` estimates the divergence of the policy from its reference on these
    answers, in nats each: the mean of log ref - log pi, which is that of the reference from the policy were the answers the reference's
    own. `chosen_drift` is the mean log-ratio of the chosen answers by token: below 0 they have become less likely.
    """
    with torch.no_grad():
        pairs = float(len(chosen.policy_N))
        rewards = [loss.beta * side.ratios(loss.averaged) for side in (chosen, rejected)]
        margin_P = rewards[0] - rewards[1]
        found: dict[str, tuple[Tensor | float, float]] = {
            "accuracy": ((margin_P > 0).float().sum(), pairs),
            "margin": (margin_P.sum(), pairs),
            "chosen_reward": (rewards[0].sum(), pairs),
            "rejected_reward": (rewards[1].sum(), pairs),
            "chosen_log_probability": (chosen.policy_N.sum(), pairs),
            "rejected_log_probability": (rejected.policy_N.sum(), pairs),
        }
        if chosen.reference_N is not None:
            found |= _drift((chosen, rejected), chosen)
        else:
            found["chosen_token_log_probability"] = ((chosen.policy_N / chosen.tokens_N).sum(), pairs)
        return found


def answer_metrics(answers: Answers, good_N: Tensor, baseline: Tensor, loss: PreferenceLoss) -> Metrics:
    """The same for judged answers, those of good ones as chosen, of bad ones as rejected. Figures of no answer have the count 0."""
    with torch.no_grad():
        reward_N = loss.beta * answers.ratios(averaged=False)
        count, bad_N = float(len(good_N)), ~good_N
        good = good_N.float().sum()
        parts: dict[str, tuple[Tensor | float, float]] = {"good": (good, count), "baseline": (baseline * count, count)}
        for name, own_N in (("chosen", good_N), ("rejected", bad_N)):
            # How many there are is not known on the host: a mean over all of them, weighted, needs no read from the device.
            share = count / own_N.float().sum().clamp_min(1)
            parts[f"{name}_reward"] = ((reward_N * own_N).sum() * share, count)
            parts[f"{name}_log_probability"] = ((answers.policy_N * own_N).sum() * share, count)
        return {**parts, **_drift((answers,), answers, good_N)}


def _drift(all_answers: tuple[Answers, ...], chosen: Answers, good_N: Tensor | None = None) -> Metrics:
    """The two figures that tell how far the policy is from its reference."""
    ratios_N = torch.cat([side.ratios(averaged=False) for side in all_answers])
    by_token_N = chosen.ratios(averaged=True)
    count = float(len(by_token_N))
    if good_N is not None:
        by_token_N = by_token_N * good_N * (count / good_N.float().sum().clamp_min(1))
    return {"kl": (-ratios_N.sum(), float(len(ratios_N))), "chosen_drift": (by_token_N.sum(), count)}
