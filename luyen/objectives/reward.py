"""What a reward model learns from: of two answers to a prompt the better one is worth more, and how much more than the margin it must be.

    L = -log sigmoid(r_c - r_r - m)                         Llama 2 (Touvron et al., 2023, arXiv:2307.09288), equations 1 and 2
      + c (r_c + r_r)^2                                     rewards centred on zero (Eisenstein et al., 2023, arXiv:2312.09244)
      - w [y log sigmoid(s) + (1 - y) log sigmoid(-s)]      for both answers: is it safe? (Llama 2, appendix A.3.4)

r is the reward of the chosen (c) and the rejected (r) answer and m the pair's margin, which table 27 of Llama 2 gives by how much better
the chosen one was found. s is the reward itself, so that one half after the sigmoid separates safe from unsafe as in table 29, or a
second output beside it; y is 1 for a safe answer.

Shapes: P pairs, S answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

GRADES = ("significantly_better", "better", "slightly_better", "negligibly_better")
"""How much better the chosen answer is, best first."""
MARGINS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "small": dict(zip(GRADES, (1.0, 2 / 3, 1 / 3, 0.0), strict=True)),
        "large": dict(zip(GRADES, (3.0, 2.0, 1.0, 0.0), strict=True)),
    }
)
"""Margin of each grade (Llama 2, table 27)."""
SAFETY: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"chosen_safe": (True, False), "both_safe": (True, True), "both_unsafe": (False, False)}
)
"""Whether the chosen and the rejected answer are safe, by the pair's label (Llama 2, section 3.2.1)."""


def ranking_losses(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """The loss of each pair of rewards, (P,): by its margin, and `centring` times the square of their sum."""
    difference_P = chosen_P - rejected_P
    losses_P = -logsigmoid(difference_P if margin_P is None else difference_P - margin_P)
    return losses_P + centring * (chosen_P + rejected_P).square() if centring else losses_P


def safety_losses(scores_S: Tensor, safe_S: Tensor) -> Tensor:
    """Binary cross-entropy (nats) of each answer, (S,): `safe_S` is 1 for a safe one, 0 for an unsafe one, -1 where nobody said, loss 0."""
    known_S = safe_S >= 0
    losses_S = binary_cross_entropy_with_logits(scores_S, safe_S.clamp_min(0).to(scores_S.dtype), reduction="none")
    return losses_S * known_S
