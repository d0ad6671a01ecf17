"""Config of the verb `reward`. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luyen.core.config import Config, Input
from luyen.data.config import ReadConfig
from luyen.engine.config import OptimizerConfig, ScheduleConfig, TrainConfig
from luyen.recipe.configs import TuningConfig

Share = Annotated[float, Field(gt=0, le=1)]
MIXED = {"helpfulness": 0.5, "safety": 0.1}
"""Share of the pairs of `other` in each of Llama 2's mixes (arXiv:2307.09288, section 3.2.2)."""
STAYS_APART = ("bottleneck", "compacter", "p-tuning", "prefix", "prompt")
"""Adapters that no plain weight computes."""


class RewardLossConfig(Config):
    """What the rewards of two answers cost."""

    margins: Literal["none", "small", "large", "row"] = "none"
    """How much more the chosen answer must be worth: nothing; by its grade 1, 2/3, 1/3, 0 (small) or 3, 2, 1, 0 (large), as Llama 2's
    table 27 has it; or what the row itself says. Rows that do not say have margin 0."""
    centring: float = Field(default=0.0, ge=0)
    """Weight of the square of the two rewards' sum, which keeps rewards around zero; 0.01 is usual."""
    safety: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the rows' safety label (safety: chosen_safe, both_safe or both_unsafe), both answers' added."""
    safety_head: bool = False
    """Learn the safety label by a second output beside the reward; else by the reward itself, above zero for what is safe."""

    @model_validator(mode="after")
    def _check(self) -> RewardLossConfig:
        if self.safety_head and not self.safety:
            raise ValueError("loss.safety_head has nothing to learn while loss.safety is 0; set its weight too")
        return self


class PairsSection(Config):
    """How much one micro-batch holds."""

    pairs: int = Field(default=16, ge=1)
    """Pairs in a micro-batch (Llama 2: 512 in an update)."""
    length: int | None = Field(default=None, ge=2)
    """Most tokens of a prompt with one answer; empty: the model's context length."""


class RewardOptimizerConfig(OptimizerConfig):
    """The rule that turns gradients into updates, with the settings of Llama 2's reward models."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate: 1e-5, 5e-6 for 70B; a small model wants more, up to 1e-3."""
    epsilon: float = Field(default=1e-5, gt=0)
    """Added to the root of AdamW's second moment."""


class RewardScheduleConfig(ScheduleConfig):
    """The learning rate over the steps, as a share of its peak."""

    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of all steps over which the rate rises linearly; Llama 2 takes 5 steps at least (warmup_steps=5)."""


class RewardTrainConfig(TrainConfig):
    """The training loop."""

    steps: int = Field(default=1_000_000, ge=1)
    """Most updates; `epochs` ends before where it makes fewer."""
    optimizer: RewardOptimizerConfig = RewardOptimizerConfig()
    """The optimizer."""
    schedule: RewardScheduleConfig = RewardScheduleConfig()
    """The learning rate over time."""


class EndpointConfig(Config):
    """A judge behind OpenAI's protocol, and how much a judge is asked."""

    url: str = ""
    """What comes before /chat/completions, such as http://127.0.0.1:8000/v1; empty: none."""
    name: str = ""
    """The model's name there."""
    pairs: int = Field(default=200, ge=1)
    """At most so many held-out pairs are judged, each both ways round."""

    @model_validator(mode="after")
    def _check(self) -> EndpointConfig:
        if bool(self.url) != bool(self.name):
            raise ValueError("endpoint needs both url and name, the model's name there")
        return self


class PairDataConfig(TuningConfig):
    """A model and the preferences that it learns from."""

    model: Input
    """A chat model: a stage, a Hugging Face folder, or a hub name."""
    data: list[Input] | Input
    """Preferences: files of any accepted form, a stage that made some, or a hub data set; several are mixed."""
    read: ReadConfig = ReadConfig()
    """How these files are read."""
    weights: list[float] | None = None
    """Share of each of `data` in the mixture, in their order; empty: by their sizes."""
    mix: Literal["none", "helpfulness", "safety"] = "none"
    """Llama 2's mixes: all of `data` with as many pairs of `other` (helpfulness), or with one in ten of `other` (safety)."""
    other: list[Input] = []
    """The other domain's and open preferences, drawn from uniformly by `mix`."""
    heldout: list[Input] | Input | None = None
    """Preferences to measure on, each file a data set of the report; empty: those of one prompt in twenty of `data`, not learned then."""
    truncation: Literal["drop", "keep_end", "raise"] = "drop"
    """What to do with a pair longer than `batch.length`; keep_end cuts the beginning of the prompt. A cut answer would have no end."""

    @model_validator(mode="after")
    def _check_data(self) -> PairDataConfig:
        if (self.mix == "none") != (not self.other):
            raise ValueError(f"mix={self.mix} and other={self.other}: a mix takes pairs of other, and without one nothing reads them")
        if self.mix != "none" and self.weights is not None:
            raise ValueError(f"weights and mix={self.mix} are two mixtures; take one")
        count = 1 if isinstance(self.data, str) else len(self.data)
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"weights has {len(self.weights)} numbers; expected one for each of the {count} data sets")
        if self.adapter.method in STAYS_APART:
            raise ValueError(
                f"adapter.method={self.adapter.method} cannot be merged, and a reward model is written merged; take lora or another"
            )
        if self.adapter.method == "esft":
            raise ValueError("adapter.method=esft chooses experts by packed text, which pairs are not; take lora or another")
        return self


class RewardVerbConfig(PairDataConfig):
    """A reward model from preferences."""

    loss: RewardLossConfig = RewardLossConfig()
    """The loss."""
    batch: PairsSection = PairsSection()
    """Micro-batch."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs; more than one soon learns them by heart."""
    train: RewardTrainConfig = RewardTrainConfig()
    """The loop."""
    beside: Input | None = None
    """Another reward model (stage or folder): how far the two agree on the held-out pairs is measured."""
    judge: Input | None = None
    """A chat model (stage or folder) that is asked which of the two answers is best."""
    endpoint: EndpointConfig = EndpointConfig()
    """The same question to a model behind an endpoint."""
    scaling: list[Share] = []
    """Shares of the pairs, such as [0.25, 0.5, 1]: a model learns from each, and a power law of the held-out loss is fitted and drawn."""
    sizes: list[Input] = []
    """Further chat models that scaling trains, smaller or larger."""
    seed: int | None = None
    """Seed; empty: the recipe's."""

    @model_validator(mode="after")
    def _check_reward(self) -> RewardVerbConfig:
        parallel = self.train.parallel
        for key in ("tensor", "context", "pipeline"):
            if getattr(parallel, key) > 1:
                raise ValueError(f"train.parallel.{key}={getattr(parallel, key)} splits sequences that share a prompt; take data or shard")
        if self.sizes and not self.scaling:
            raise ValueError("sizes are trained by scaling, which is empty; set it, for instance scaling=[0.25,0.5,1]")
        return self
