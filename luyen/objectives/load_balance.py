"""How evenly tokens are spread over experts (Fedus et al., 2021, Switch Transformer, arXiv:2101.03961, equations 4 to 6).

    L = E sum over e of f_e P_e        f_e: how often e was chosen, P_e: its mean probability, for a token

With K choices for each token it is K where all experts are chosen equally often, and E at most (K = 1). As in the code that came with
Mixtral and OLMoE the means are over the tokens of all layers together. Only P has a gradient, which lowers the scores of what is chosen
often.

It is no sum over tokens, so it depends on how a step is split into micro-batches: that f of the whole step would have to be known before
the first backward pass. The mean over micro-batches, each with its number of targets, is what stands beside the loss.

Shapes: N tokens, E experts, K chosen for each token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balance(logits: Sequence[Tensor], choices: Sequence[Tensor]) -> Tensor:
    """L of a pass, from every layer's scores (N, E) and numbers of the chosen experts (N, K)."""
    experts = logits[0].shape[-1]
    rows = sum(len(logits_NE) for logits_NE in logits)
    chosen_E = torch.stack([torch.bincount(choice_NK.flatten(), minlength=experts) for choice_NK in choices]).sum(0)
    share_E = torch.stack([logits_NE.float().softmax(-1).sum(0) for logits_NE in logits]).sum(0)
    return experts * (chosen_E / rows * (share_E / rows)).sum()
