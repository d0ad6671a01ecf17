"""Proximal policy optimization on answers (Schulman et al., 2017, arXiv:1707.06347, equation 7; Ouyang et al., 2022, arXiv:2203.02155,
section 3.5; Touvron et al., 2023, arXiv:2307.09288, section 3.2.3).

    R   = whiten(score) - beta KL(pi || pi_0)                       the divergence of each token where it is, the score at the last one
    A_t = sum_k (gamma lambda)^k (r_(t+k) + gamma V_(t+k+1) - V_(t+k)),   whitened over the rollout
    L   = max(-A rho, -A clip(rho, 1 - e, 1 + e)) + c max((V - G)^2, (clip(V, V_old +- v) - G)^2) / 2,   G = A + V_old

The values are a linear map of the policy's own states, or a critic's that is trained beside it. A value stands where its token is
predicted: it is what the answer so far promises.

Shapes: S answers, T tokens, K tokens of all answers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from luyen.algorithms.policy_config import PPOLossConfig
from luyen.algorithms.rollout import Rollouts
from luyen.algorithms.rollout_files import PolicyBatch, Rollout
from luyen.models.attention import Layout
from luyen.models.scored import ScoredDecoder
from luyen.models.transformer import Transformer
from luyen.objectives.log_probability import target_log_probabilities
from luyen.objectives.loss import Loss
from luyen.objectives.policy import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    flat,
    generalized_advantages,
    kl_estimate,
    padded,
    shaped_rewards,
    whitened,
)  # fmt: skip


class ActorCritic(nn.Module):
    """A policy and a number for every token: of its own states, or of a critic's."""

    def __init__(self, decoder: Transformer, critic: ScoredDecoder | None = None) -> None:
        """A map of the policy's own states begins at zero, so at first no value says anything and none misleads."""
        super().__init__()
        self.decoder = decoder
        self.critic = critic
        self.value = None if critic is not None else ScoredDecoder(decoder).score

    def values(self, batch: PolicyBatch, layout: Layout, hidden_KD: Tensor) -> Tensor:
        """The value of every token's state, (K,), in the map's own type."""
        if self.critic is not None:
            hidden_TD = self.critic(batch.tokens_T[None], layout)[0]
            return self.critic.scores(hidden_TD.index_select(0, batch.positions_K))[:, 0]
        assert self.value is not None
        with torch.autocast(hidden_KD.device.type, enabled=False):
            found_K: Tensor = self.value(hidden_KD.to(self.value.weight.dtype))[:, 0]
        return found_K


class PPO:
    """Answers drawn, judged, and gone over in clipped steps."""

    batches_ahead = False
    by_tokens = True
    compares = True

    def __init__(self, model: ActorCritic, rollouts: Rollouts, config: PPOLossConfig) -> None:
        self.model, self.rollouts, self.config = model, rollouts, config
        self.temperature = rollouts.config.temperature

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[PolicyBatch, dict[str, Any]]]:
        """Micro-batches of rollouts without end."""
        return self.rollouts.batches(state, self)

    def measure(self, batch: PolicyBatch) -> Mapping[str, Tensor]:
        """Log-probabilities and values of the policy that drew the answers."""
        own_K, value_K, _ = self._passed(batch)
        return {"old_K": own_K, "value_K": value_K}

    def learn(self, rollout: Rollout, beta: float) -> Rollout:
        """Advantages and returns of every token."""
        config, lengths = self.config, rollout.lengths
        scores_S = rollout.scores_S - self.rollouts.config.unfinished * torch.tensor([not answer.stopped for answer in rollout.answers])
        if config.whiten_scores:
            scores_S = whitened(scores_S)
        old_K, value_K, reference_K = (rollout.columns[name].double() for name in ("old_K", "value_K", "reference_K"))
        kl_K = kl_estimate(old_K, reference_K)
        rewards_SL = shaped_rewards(scores_S, kl_K, lengths, beta)
        if config.whiten_rewards:
            rewards_SL = padded(whitened(flat(rewards_SL, lengths), shift_mean=False), lengths)
        advantages_SL, returns_SL = generalized_advantages(rewards_SL, padded(value_K, lengths), config.gamma, config.lam)
        advantage_K, return_K = (flat(each_SL, lengths) for each_SL in (advantages_SL, returns_SL))
        made = {"advantage_K": whitened(advantage_K).float(), "return_K": return_K.float()}
        figures = {
            "kl": float(kl_K.sum()) / len(lengths), "shaped_reward": float(flat(rewards_SL, lengths).sum()) / len(lengths),
            "value_explained": explained_variance(value_K, return_K),
        }  # fmt: skip
        kept = {name: column for name, column in rollout.columns.items() if name != "reference_K"}
        return replace(rollout, columns={**kept, **made}, figures={**rollout.figures, **figures})

    def loss(self, batch: PolicyBatch) -> Loss:
        """Sum over the answers' tokens."""
        config, given = self.config, batch.columns
        own_K, value_K, entropy_K = self._passed(batch)
        policy = clipped_policy_loss(own_K, given["old_K"], given["advantage_K"], config.clip, config.clip)
        value = clipped_value_loss(value_K, given["value_K"], given["return_K"], config.value_clip)
        count = batch.num_targets
        moved = kl_estimate(own_K.detach(), given["old_K"], "k2").sum()
        self.rollouts.moved(moved, entropy_K.sum(), count)
        metrics: dict[str, tuple[Tensor | float, float]] = {
            "policy_loss": (policy.total.detach(), float(count)), "value_loss": (value.total.detach(), float(count)),
            "clip_fraction": (policy.clipped, float(count)), "value_clip_fraction": (value.clipped, float(count)),
            "moved": (moved, float(count)), "entropy": (entropy_K.sum(), float(count)), **told(batch.figures),
        }  # fmt: skip
        return Loss(policy.total + config.value_weight * value.total, count, metrics)

    def _passed(self, batch: PolicyBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, value and entropy of every token, (K,) each; the old ones come from the very same pass."""
        decoder = self.model.decoder
        layout = Layout.branched(batch.lengths, batch.trunks, batch.tokens_T.device)
        hidden_KD = decoder(batch.tokens_T[None], layout)[0].index_select(0, batch.positions_K)
        targets_K = batch.targets_T.index_select(0, batch.positions_K)
        entropy_K = torch.empty(len(targets_K), device=hidden_KD.device, dtype=torch.promote_types(hidden_KD.dtype, torch.float32))
        own_K = target_log_probabilities(hidden_KD, decoder.head_weight, targets_K, self.temperature, entropy_K)
        return own_K, self.model.values(batch, layout, hidden_KD), entropy_K


def told(figures: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """What is known of a whole rollout, as the figures of each of its updates."""
    return {name: (value, 1.0) for name, value in figures.items()}
