"""Config of the verb `dpo`. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from luyen.core.config import Config, Input
from luyen.core.errors import nearest
from luyen.data.config import HeldOutConfig, ReadConfig
from luyen.engine.config import OptimizerConfig, TrainConfig
from luyen.recipe.configs import TuningConfig
from luyen.tokenizer.templates import JINJA_FILE, TEMPLATES

ONLY: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("cdpo", "robust"),
    "gamma": ("simpo",),
    "length_normalised": ("sigmoid", "cdpo", "robust", "hinge"),
    "sft_weight": ("sigmoid", "cdpo", "robust", "hinge", "ipo", "orpo", "simpo"),
    "desirable_weight": ("kto", "apo_zero_unpaired"),
    "undesirable_weight": ("kto", "apo_zero_unpaired"),
}
"""Numbers that some losses alone have."""


class PreferenceLossConfig(Config):
    """What is learned from a pair or a judged answer; docs/preferences.md has the formulas."""

    name: Literal["sigmoid", "cdpo", "robust", "hinge", "ipo", "orpo", "simpo", "kto", "apo_zero_unpaired"] = "sigmoid"
    """sigmoid: DPO. cdpo, robust: DPO where a share of the labels is wrong. orpo, simpo: without a reference. kto, apo_zero_unpaired: from
    answers judged one by one."""
    beta: float | None = Field(default=None, gt=0)
    """How closely the policy is held to the reference, the larger the closer; of orpo the weight of its second term. Empty: 0.1, of simpo
    2.5."""
    label_smoothing: float | None = Field(default=None, gt=0, lt=0.5)
    """cdpo and robust: the share of labels that are wrong; empty: 0.1."""
    gamma: float | None = Field(default=None, ge=0)
    """simpo: how much larger the chosen answer's reward is to be; empty: half of beta."""
    length_normalised: bool = False
    """Divide the log-probabilities of an answer by the number of its tokens; ipo, orpo and simpo always do."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of fine-tuning on the chosen answer beside the loss, which keeps it from becoming less likely."""
    desirable_weight: float | None = Field(default=None, gt=0)
    """kto: weight of good answers; empty: 1."""
    undesirable_weight: float | None = Field(default=None, gt=0)
    """kto: weight of bad answers; empty: 1. Good answers times their weight should be 1 to 1.33 times bad ones times theirs."""

    @model_validator(mode="after")
    def _check(self) -> PreferenceLossConfig:
        for key, losses in ONLY.items():
            if getattr(self, key) not in (None, False, 0.0) and self.name not in losses:
                raise ValueError(f"loss.{key} is not read by loss.name={self.name}; it is a number of {', '.join(losses)}")
        return self

    @property
    def unpaired(self) -> bool:
        """Whether it learns from answers judged one by one."""
        return self.name in ("kto", "apo_zero_unpaired")

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with another."""
        return self.name not in ("orpo", "simpo")

    def numbers(self) -> dict[str, Any]:
        """Everything, with what is left out filled in."""
        beta = self.beta or (2.5 if self.name == "simpo" else 0.1)
        smoothing = (self.label_smoothing or 0.1) if self.name in ONLY["label_smoothing"] else 0.0
        return {
            "name": self.name, "beta": beta, "label_smoothing": smoothing, "gamma": beta / 2 if self.gamma is None else self.gamma,
            "length_normalised": self.length_normalised, "sft_weight": self.sft_weight,
            "desirable_weight": self.desirable_weight or 1.0, "undesirable_weight": self.undesirable_weight or 1.0,
        }  # fmt: skip


class PreferenceBatch(Config):
    """How much one micro-batch holds, and what of a row."""

    pairs: int = Field(default=8, ge=1)
    """Pairs, or judged answers, in a micro-batch."""
    length: int | None = Field(default=None, ge=2)
    """Most tokens of a prompt with one answer; empty: the model's context length."""
    truncation: Literal["drop", "keep_start", "keep_end", "raise"] = "drop"
    """What to do with a longer one: keep_start cuts its end, keep_end the prompt's beginning, for both answers alike."""
    turns: Literal["last", "all"] = "last"
    """Where an answer is a branch of several turns: whether its last turn is trained, or all turns of the assistant in it."""


class PreferenceOptimizerConfig(OptimizerConfig):
    """The rule that turns gradients into updates."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate: 1e-6 for a large model trained whole, about ten times that with an adapter; a small model wants 1e-5 to 1e-4."""


class PreferenceTrainConfig(TrainConfig):
    """The training loop."""

    optimizer: PreferenceOptimizerConfig = PreferenceOptimizerConfig()
    """The optimizer."""


class PreferenceDataConfig(TuningConfig):
    """A chat model and the preferences that it learns from."""

    model: Input
    """A chat model: a stage, a Hugging Face folder, or a hub name. Of an iterated recipe, the last round's."""
    data: list[Input] | Input
    """Preferences, or for kto judged answers: files of any accepted form, a stage that made some, or a hub data set; several are mixed."""
    read: ReadConfig = ReadConfig()
    """How the files of `data` and `heldout_pairs` are read."""
    weights: list[float] | None = None
    """Share of each of `data` in the mixture, in their order; empty: by their sizes."""
    template: str = ""
    """Chat template: a built-in one by name, or the path of a .jinja file; empty: the model's own."""
    batch: PreferenceBatch = PreferenceBatch()
    """Micro-batch."""

    @model_validator(mode="after")
    def _check_data(self) -> PreferenceDataConfig:
        if self.template and not self.template.endswith(JINJA_FILE) and self.template not in TEMPLATES:
            raise ValueError(
                f"unknown template {self.template!r}. {nearest(self.template, TEMPLATES)} A file of yours ends in {JINJA_FILE}."
            )
        count = 1 if isinstance(self.data, str) else len(self.data)
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"weights has {len(self.weights)} numbers; expected one for each of the {count} data sets")
        return self


class PreferenceConfig(PreferenceDataConfig):
    """DPO and its kin: a policy from preferences, without a reward model."""

    loss: PreferenceLossConfig = PreferenceLossConfig()
    """The loss."""
    reference: Input | None = None
    """What the policy is compared with: a model stage, folder or hub name; empty: the model as it is before training."""
    precompute: bool = False
    """Ask the reference once for every answer before training instead of at every step: no second model while training."""
    heldout_pairs: Input | None = None
    """Preferences that nothing is learned from: accuracy and margin on them are measured at every evaluation."""
    heldout: Input | None = None
    """A corpus, or files of text, whose held-out documents measure forgetting; empty: not measured during training."""
    heldout_read: HeldOutConfig = HeldOutConfig()
    """How files of `heldout` that nobody curated are read."""
    train: PreferenceTrainConfig = PreferenceTrainConfig()
    """The loop."""
    prompts: list[str] = []
    """Fixed questions that the model answers at every evaluation."""
    seed: int | None = None
    """Seed; empty: the recipe's."""

    @model_validator(mode="after")
    def _check(self) -> PreferenceConfig:
        for key in ("tensor", "context", "pipeline"):
            if (found := getattr(self.train.parallel, key)) > 1:
                raise ValueError(f"train.parallel.{key}={found} splits sequences that share a prompt; take data or shard")
        if not self.loss.needs_reference and (self.reference is not None or self.precompute):
            raise ValueError(f"loss.name={self.loss.name} has no reference; leave reference and precompute out")
        return self
