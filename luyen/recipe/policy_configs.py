"""Configs of the verbs that train a policy on its own answers. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from luyen.algorithms.policy_config import GroupLossConfig, GroupRolloutConfig, PPOLossConfig, RolloutConfig
from luyen.core.config import Config, Input, merge
from luyen.data.config import HeldOutConfig, ReadConfig
from luyen.engine.config import OptimizerConfig, ScheduleConfig, TrainConfig
from luyen.inference.reward_config import Measure, RewardConfig
from luyen.recipe.configs import TuningConfig


def _llama_2(beta: float) -> dict[str, Any]:
    optimizer = {"learning_rate": 1e-6, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-5, "weight_decay": 0.1, "clip_norm": 1.0}
    return {
        "rollout": {"prompts": 512, "samples": 1, "minibatch": 64, "epochs": 1},
        "loss": {"clip": 0.2, "whiten_scores": True, "kl": {"beta": beta}},
        "train": {"optimizer": optimizer, "schedule": {"name": "constant", "warmup_fraction": 0.0}},
    }


PRESETS: dict[str, dict[str, Any]] = {"": {}, "llama-2": _llama_2(0.01), "llama-2-large": _llama_2(0.005)}
"""Llama 2 (arXiv:2307.09288, section 3.2.3): the 7B and 13B models, and the 34B and 70B ones. Its 200 to 400 rollouts are 1,600 to 3,200
steps."""


class ScoreConfig(Config):
    """Held-out questions whose right answers are known: the true score beside the reward."""

    questions: Input
    """A questions stage with evaluation.jsonl."""
    measure: Measure = "right"
    """As that of a reward."""
    examples: int = Field(default=100, ge=1)
    """At most so many questions of each set."""


class PolicyOptimizerConfig(OptimizerConfig):
    """The rule that turns gradients into updates, in steps that a policy survives."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate: 1e-6 for a large model trained whole, as Llama 2 was; adapters and small models want 10 to 100 times as much."""


class PolicyScheduleConfig(ScheduleConfig):
    """The learning rate over the steps: as long as one likes, so it stays."""

    name: Literal["constant", "linear", "polynomial", "cosine", "wsd", "inverse_sqrt", "ramp"] = "constant"
    """As in any training; constant unless told."""


class PolicyTrainConfig(TrainConfig):
    """The training loop; a step is one update, of which a rollout gives rollout.epochs * rollout.prompts / (rollout.minibatch *
    accumulation)."""

    optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    """The optimizer."""
    schedule: PolicyScheduleConfig = PolicyScheduleConfig()
    """The learning rate over time."""


class AnsweringConfig(TuningConfig):
    """What every verb has that trains a model on its own answers."""

    model: Input
    """A chat model: a stage, a Hugging Face folder, or a hub name."""
    prompts: list[Input] | Input
    """What is asked: questions, preferences and conversations of stages or of files of any accepted form, whose last answers are what a
    task's reward compares with; several are asked one after another."""
    read: ReadConfig = ReadConfig()
    """How the files of `prompts` are read."""
    reward: RewardConfig
    """What scores an answer."""
    score: ScoreConfig | None = None
    """The true score of held-out questions at every evaluation, beside the reward of the same answers; empty: not measured."""
    heldout: Input | None = None
    """A corpus, or files of text, whose held-out documents measure forgetting; empty: not measured."""
    heldout_read: HeldOutConfig = HeldOutConfig()
    """How files of `heldout` that nobody curated are read."""
    ask: list[str] = []
    """Fixed questions that the model answers at every evaluation."""
    seed: int | None = None
    """Seed; empty: the recipe's."""

    @model_validator(mode="after")
    def _check_answering(self) -> AnsweringConfig:
        if self.adapter.method == "esft":
            raise ValueError("adapter.method=esft chooses experts by its data, and answers are not there before; take lora or selective")
        if self.tokens:
            raise ValueError("tokens: a policy learns from its own answers, in which new tokens never stand; teach them by sft first")
        return self


class PolicyConfig(AnsweringConfig):
    """What the verbs have whose answers are drawn anew as the model changes."""

    rollout: RolloutConfig = RolloutConfig()
    """What is answered before it is learned from."""
    train: PolicyTrainConfig = PolicyTrainConfig()
    """The loop."""

    @model_validator(mode="after")
    def _check_policy(self) -> PolicyConfig:
        self.rollout.check(self.train.accumulation)
        for axis in ("shard", "tensor", "context", "pipeline"):
            if (ranks := getattr(self.train.parallel, axis)) > 1:
                raise ValueError(f"train.parallel.{axis}={ranks} splits the model, which must write answers whole; take data")
        if self.adapter.dropout:
            raise ValueError(
                f"adapter.dropout={self.adapter.dropout:g} makes the policy that learns another than the one that answered; set 0"
            )
        return self


class PPOConfig(PolicyConfig):
    """Proximal policy optimization: a policy, a critic, and a divergence that costs."""

    preset: str = ""
    """Values that other keys change: llama-2 (7B, 13B) or llama-2-large (34B, 70B), as published; empty: none."""
    loss: PPOLossConfig = PPOLossConfig()
    """The losses and the divergence."""
    critic: Input | None = None
    """A chat or reward model that a critic of its own begins as; empty: the values are a map of the policy's states."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        name = values.get("preset", "") if isinstance(values, dict) else ""
        if not isinstance(name, str) or name not in PRESETS:
            known = ", ".join(name for name in PRESETS if name)
            raise ValueError(f"unknown preset {name!r}. Known: {known}.")
        return merge(PRESETS[name], values) if name else values


class GRPOConfig(PolicyConfig):
    """Policy gradients without a critic: GRPO, Dr. GRPO, RLOO, REINFORCE++."""

    rollout: GroupRolloutConfig = GroupRolloutConfig()
    """What is answered before it is learned from."""
    loss: GroupLossConfig = GroupLossConfig()
    """Which of them, and its loss."""

    @model_validator(mode="after")
    def _check_groups(self) -> GRPOConfig:
        if self.loss.name != "reinforce++" and self.rollout.samples < 2:
            raise ValueError(f"rollout.samples is {self.rollout.samples}, and {self.loss.name} compares answers; take 4 or more")
        return self
