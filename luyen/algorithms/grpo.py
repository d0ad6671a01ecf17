"""Policy gradients without a critic: answers are measured by the others to the same prompt, or by the whole rollout.

    GRPO        A = (R - mean(group)) / std(group),     L = max(-A rho, -A clip(rho)) + beta k3,    mean over answers of each one's mean
    Dr. GRPO    A = R - mean(group),                    the same, each answer's sum over a constant
    RLOO        A = R - mean(others of the group),      R = score - beta log(pi / pi_0)(answer)
    REINFORCE++ A_t = whiten(sum of r from t on),       r as in PPO, whitened over the rollout

Shao et al., 2024, arXiv:2402.03300, equation 3; Liu et al., 2025, arXiv:2503.20783; Ahmadian et al., 2024, arXiv:2402.14740, section 2.2;
Hu, 2025, arXiv:2501.03262. Where a rollout is one update, the policy that drew the answers is the one that is updated: its probabilities
are those of the loss itself, and no pass measures them before.

Shapes: G prompts, N answers to each, S answers, K tokens of all answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luyen.algorithms.policy_config import GroupLossConfig
from luyen.algorithms.ppo import told
from luyen.algorithms.rollout import Rollouts
from luyen.algorithms.rollout_files import PolicyBatch, Rollout
from luyen.algorithms.sequences import token_log_probabilities, trained_tokens
from luyen.models.transformer import Transformer
from luyen.objectives.loss import Loss
from luyen.objectives.policy import (
    clipped_policy_loss,
    flat,
    generalized_advantages,
    group_advantages,
    kl_estimate,
    leave_one_out,
    shaped_rewards,
    whitened,
)  # fmt: skip

IN_LOSS = ("grpo", "dr-grpo")
"""Those that count the divergence in the loss instead of the reward."""


class GRPO:
    """Answers in groups, and its kin by `config.name`."""

    batches_ahead = False

    def __init__(self, model: Transformer, rollouts: Rollouts, config: GroupLossConfig, updates: int) -> None:
        """`updates` of the weights are made of each rollout."""
        self.model, self.rollouts, self.config = model, rollouts, config
        self.temperature = rollouts.config.temperature
        self.compares = config.kl.beta > 0
        self.by_tokens = config.mean == "tokens"
        in_reward = config.name not in IN_LOSS or config.kl.target is not None  # what beta adapts to is known before the updates
        self.measures = updates > 1 or (self.compares and in_reward)

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[PolicyBatch, dict[str, Any]]]:
        """Micro-batches of rollouts without end."""
        return self.rollouts.batches(state, self)

    def measure(self, batch: PolicyBatch) -> Mapping[str, Tensor]:
        """Log-probabilities of the policy that drew the answers, unless the loss itself has them."""
        return {"old_K": token_log_probabilities(self.model, batch, self.temperature)} if self.measures else {}

    def learn(self, rollout: Rollout, beta: float) -> Rollout:
        """Advantages of every token; in the figures the divergence, where it was measured."""
        lengths, figures = rollout.lengths, dict(rollout.figures)
        scores_S = rollout.scores_S - self.rollouts.config.unfinished * torch.tensor([not answer.stopped for answer in rollout.answers])
        kl_K = torch.zeros(sum(lengths), dtype=torch.float64)
        if self.compares and self.measures:
            kl_K = kl_estimate(rollout.columns["old_K"].double(), rollout.columns["reference_K"].double())
            figures["kl"] = float(kl_K.sum()) / len(lengths)
        advantage_K = self._advantages(scores_S, kl_K, rollout, beta)
        return replace(rollout, columns={**rollout.columns, "advantage_K": advantage_K.float()}, figures=figures)

    def _advantages(self, scores_S: Tensor, kl_K: Tensor, rollout: Rollout, beta: float) -> Tensor:
        """Of every token, (K,)."""
        name, lengths = self.config.name, rollout.lengths
        if name == "reinforce++":
            rewards_SL = shaped_rewards(scores_S, kl_K, lengths, beta)
            sums_SL, _ = generalized_advantages(rewards_SL, torch.zeros_like(rewards_SL), 1.0, 1.0)
            return whitened(flat(sums_SL, lengths))
        if name == "rloo":
            scores_S = scores_S - beta * torch.stack([part.sum() for part in kl_K.split_with_sizes(lengths)])
        rewards_GN = scores_S.view(len(rollout.prompts), -1)
        each_GN = leave_one_out(rewards_GN) if name == "rloo" else group_advantages(rewards_GN, divide=name == "grpo")
        return each_GN.flatten().repeat_interleave(torch.tensor(lengths))

    def loss(self, batch: PolicyBatch) -> Loss:
        """Sum over tokens, or over answers."""
        config, given, tokens = self.config, batch.columns, len(batch.positions_K)
        entropy_K = torch.empty(
            tokens, device=batch.tokens_T.device, dtype=torch.promote_types(self.model.head_weight.dtype, torch.float32)
        )
        own_K = token_log_probabilities(self.model, batch, self.temperature, entropy_K)
        old_K = given["old_K"] if self.measures else own_K.detach()
        weights_K = self._weights(batch)
        high = config.clip if config.clip_high is None else config.clip_high
        policy = clipped_policy_loss(own_K, old_K, given["advantage_K"], config.clip, high, weights_K)
        moved = kl_estimate(own_K.detach(), old_K, "k2").sum()
        metrics: dict[str, tuple[Tensor | float, float]] = {
            "policy_loss": (policy.total.detach(), float(batch.num_targets)), "clip_fraction": (policy.clipped, float(tokens)),
            "moved": (moved, float(tokens)), "entropy": (entropy_K.sum(), float(tokens)), **told(batch.figures),
        }  # fmt: skip
        total, away = policy.total, None
        if self.compares and config.name in IN_LOSS:
            kl_K = kl_estimate(own_K, given["reference_K"], "k3")
            total = total + batch.figures["beta"] * (kl_K @ weights_K)
            away = (kl_K.sum().detach(), batch.num_sequences)
            metrics.setdefault("kl", (away[0], float(away[1])))
        self.rollouts.moved(moved, entropy_K.sum(), tokens, None if self.measures else away)
        return Loss(total, batch.num_targets, metrics)

    def _weights(self, batch: PolicyBatch) -> Tensor:
        """What each token counts, (K,): the loss is the weighted sum over `batch.num_targets`."""
        if self.config.mean == "answers":
            return 1 / trained_tokens(batch).index_select(0, batch.sequence_K)
        each = 1.0 if self.by_tokens else 1 / self.rollouts.config.max_new_tokens
        return torch.full((len(batch.positions_K),), each, device=batch.tokens_T.device)
