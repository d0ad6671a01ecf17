"""Config of the verb `reject`. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from pydantic import Field, model_validator

from luyen.algorithms.rejection_config import DrawConfig
from luyen.core.config import Input
from luyen.engine.config import TrainConfig
from luyen.recipe.configs import BatchSection
from luyen.recipe.policy_configs import AnsweringConfig


class RejectTrainConfig(TrainConfig):
    """The training loop."""

    steps: int = Field(default=1_000_000, ge=1)
    """Most updates; `epochs` ends before where it makes fewer."""


class RejectConfig(AnsweringConfig):
    """Rejection sampling: several answers to each prompt, and fine-tuning on the best."""

    samples: int = Field(default=16, ge=1)
    """Answers drawn to each prompt."""
    draw: DrawConfig = DrawConfig()
    """How they are drawn."""
    previous: list[Input] = []
    """Earlier stages of `reject`, oldest first: their best answers stay candidates, scored anew, and those to prompts that are asked no
    more are learned too."""
    references: bool = False
    """The answer that a prompt's data has is a candidate too: what a model never says itself no reward can choose."""
    epochs: float = Field(default=2.0, gt=0)
    """Passes over the best answers."""
    batch: BatchSection = BatchSection()
    """Micro-batch of the fine-tuning."""
    train: RejectTrainConfig = RejectTrainConfig()
    """The loop of the fine-tuning."""

    @model_validator(mode="after")
    def _check_reject(self) -> RejectConfig:
        if self.samples < 2 and not self.previous and not self.references:
            raise ValueError(f"samples is {self.samples}, of which the best is the only one; take 4 or more")
        for axis in ("tensor", "context", "pipeline"):
            if (ranks := getattr(self.train.parallel, axis)) > 1:
                raise ValueError(f"train.parallel.{axis}={ranks} splits the model, which must write answers whole; take data or shard")
        return self
