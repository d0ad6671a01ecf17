"""How a policy learns from its own answers. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luyen.core.config import Config


class RolloutConfig(Config):
    """What is asked, answered and gone over before the next answers are drawn."""

    prompts: int = Field(default=64, ge=1)
    """Prompts of a rollout."""
    samples: int = Field(default=1, ge=1)
    """Answers drawn to each."""
    minibatch: int = Field(default=16, ge=1)
    """Prompts of a micro-batch, with all their answers; train.accumulation of them make one update."""
    epochs: int = Field(default=1, ge=1)
    """Times that a rollout is gone over."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of the draws, and of the probabilities that are learned."""
    unfinished: float = Field(default=0.0, ge=0)
    """Taken from the reward of an answer that did not end by itself."""
    batch_size: int = Field(default=128, ge=1)
    """Answers written at a time."""

    def updates(self, accumulation: int) -> int:
        """Updates of the weights for each rollout."""
        return self.epochs * self.prompts // (self.minibatch * accumulation)

    def check(self, accumulation: int) -> None:
        """Raise ValueError where the last update of a rollout would need answers of the next one."""
        one = self.minibatch * accumulation
        if self.prompts % one:
            told = f"rollout.minibatch {self.minibatch} times train.accumulation {accumulation}"
            raise ValueError(f"rollout.prompts is {self.prompts}, which is no multiple of {told}; each update takes whole micro-batches")


class GroupRolloutConfig(RolloutConfig):
    """The same for answers that are compared with each other."""

    samples: int = Field(default=8, ge=1)
    """Answers drawn to each prompt; all but reinforce++ need two or more."""


class KLConfig(Config):
    """What keeps the policy near the one that it began as."""

    beta: float = Field(default=0.05, ge=0)
    """What a nat of divergence costs; with a target, at the beginning."""
    target: float | None = Field(default=None, gt=0)
    """Divergence in nats an answer that beta is adapted to; empty: beta is fixed."""
    horizon: float = Field(default=10_000, gt=0)
    """Answers over which an adapted beta changes by about a fifth where the divergence is far off."""
    stop: float | None = Field(default=None, gt=0)
    """End a rollout's updates early when a token's divergence from the policy that drew it is above this on average; empty: never."""
    warn: float = Field(default=20.0, gt=0)
    """Divergence from the reference in nats an answer that is told as too far."""

    @model_validator(mode="after")
    def _check(self) -> KLConfig:
        if self.target is not None and not self.beta:
            raise ValueError("kl.target adapts beta by factors, and 0 stays 0; give kl.beta")
        return self


class PPOLossConfig(Config):
    """Proximal policy optimization."""

    clip: float = Field(default=0.2, gt=0)
    """How far from 1 the ratio of new to old probability of a token still counts."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far a value may move from what it was when the answer was drawn."""
    value_weight: float = Field(default=0.1, ge=0)
    """Of the value loss beside the policy's."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount of later tokens."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of the generalised advantages: 1 sums rewards, 0 trusts the values."""
    whiten_scores: bool = False
    """Bring the scores of a rollout to mean 0 and deviation 1, as Llama 2 does behind its logit."""
    whiten_rewards: bool = False
    """Divide the tokens' rewards by their deviation; the mean stays."""
    kl: KLConfig = KLConfig()
    """Divergence, counted in the reward."""


class GroupLossConfig(Config):
    """Policy gradients without a critic: answers to one prompt are measured by each other."""

    name: Literal["grpo", "dr-grpo", "rloo", "reinforce++"] = "grpo"
    """grpo: less the group's mean, over its deviation, divergence in the loss. dr-grpo: not divided, tokens summed. rloo: less the mean of
    the others, divergence in the reward. reinforce++: normalised over the rollout, divergence in every token's reward."""
    clip: float = Field(default=0.2, gt=0)
    """How far below 1 the ratio of new to old probability of a token still counts."""
    clip_high: float | None = Field(default=None, gt=0)
    """How far above 1; empty: as far as below."""
    average: Literal["", "tokens", "answers", "constant"] = ""
    """The mean that the loss is: over all tokens; over answers of each one's mean; over answers of each one's sum over max_new_tokens.
    Empty: answers for grpo, tokens for reinforce++, constant for the others."""
    kl: KLConfig = KLConfig(beta=0.0)
    """Divergence; with beta 0 nothing is compared with the reference."""

    @property
    def mean(self) -> Literal["tokens", "answers", "constant"]:
        """The average, also where it was left to the name."""
        usual: dict[str, Literal["tokens", "answers", "constant"]] = {"grpo": "answers", "reinforce++": "tokens"}
        return self.average or usual.get(self.name, "constant")
