"""Configs of the verbs that join several rooms. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from luyen.adapters.config import AdapterConfig, Quantization, check_bits
from luyen.core.config import Config, Input
from luyen.core.errors import nearest
from luyen.corpus.curate import CurateConfig
from luyen.data.config import HeldOutConfig, ReadConfig
from luyen.engine.config import TrainConfig
from luyen.inference.config import SamplingConfig
from luyen.models.presets import PRESETS
from luyen.recipe.synth_configs import PreferencesSection
from luyen.synthesis.question_answer import SynthConfig
from luyen.tokenizer.templates import JINJA_FILE, TEMPLATES
from luyen.tokenizer.train import TokenizerConfig


class CurateVerbConfig(CurateConfig):
    """Curation and where its pages come from."""

    source: Input
    """Pages of a crawl stage, a file or folder of HTML, text, jsonl or tables, also compressed, or a hub data set."""
    read: ReadConfig = ReadConfig()
    """How files that are no pages of a crawl are read."""


class TokenizerVerbConfig(TokenizerConfig):
    """Tokenizer training and its documents."""

    data: Input
    """A corpus stage, a file or folder of text, or a hub data set."""
    read: ReadConfig = ReadConfig()
    """How files that nobody curated are read."""


class ModelSection(Config):
    """The model to build. Everything left out comes from the preset."""

    preset: str = "llama-3m"
    """Size by name, from llama-1m to mixtral-8x7b; a wrong name lists them."""
    context_length: int | None = Field(None, ge=2)
    """Longest sequence in tokens; empty: as the preset says."""
    tied: bool | None = None
    """Share the embedding with the output head; empty: as the preset says."""
    num_layers: int | None = None
    """Blocks; empty: as the preset says."""
    hidden_size: int | None = None
    """Width; empty: as the preset says."""
    variant: dict[str, Any] = {}
    """What differs from the preset's variant, e.g. {window: 256} or {experts: {count: 8, per_token: 2}}; docs/families.md has the keys."""

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}. {nearest(self.preset, PRESETS)}")
        return self


class BatchSection(Config):
    """How much one micro-batch holds."""

    rows: int = Field(8, ge=1)
    """Packed rows in a micro-batch."""
    length: int | None = Field(None, ge=2)
    """Tokens in a packed row; empty: the model's context length, at most 512."""


class TuningConfig(Config):
    """What every training of an existing model has: whether all its weights are trained, or few beside them."""

    adapter: AdapterConfig = AdapterConfig()
    """How the model is tuned."""
    quantize: Quantization = "none"
    """Hold the frozen weights of the layers in 4 bits (nf4, fp4) or 8 (int8), by the extra qlora; with an adapter alone."""
    start: Input | None = None
    """An adapter (stage or folder) to go on with; its method, maps and sizes must be those of `adapter`, its bits those of `quantize`."""
    tokens: list[str] = []
    """New tokens, found wherever the data has them; those that the chat template writes become control tokens. With an adapter their rows
    of embedding and head are trained beside it."""

    @model_validator(mode="after")
    def _check_tuning(self) -> TuningConfig:
        method = self.adapter.method
        check_bits(method, self.quantize)
        if method != "full" and (parallel := getattr(self, "train", TrainConfig()).parallel):
            whole = {key: getattr(parallel, key) for key in ("tensor", "context", "pipeline") if getattr(parallel, key) > 1}
            if whole:
                key = next(iter(whole))
                raise ValueError(
                    f"train.parallel.{key}={whole[key]} splits layers, which adapters do not know; with them data and shard go"
                )
            if method == "compacter" and parallel.shard > 1:
                raise ValueError(f"train.parallel.shard={parallel.shard} slices factors that all layers of compacter share; take data")
            if self.quantize != "none" and parallel.shard > 1:
                raise ValueError(
                    f"train.parallel.shard={parallel.shard} slices numbers, and quantize={self.quantize} holds none; take data"
                )
        _check_tokens(self.tokens, self.start)
        if self.tokens and method != "full" and getattr(self, "train", TrainConfig()).parallel.shard > 1:
            raise ValueError("train.parallel.shard slices tables, beside which rows of new tokens are trained; take data")
        if method == "full" and self.start is not None:
            raise ValueError("start names an adapter, and adapter.method=full has none; to train on from a model name it as the model")
        return self


def _check_tokens(tokens: list[str], start: str | None) -> None:
    twice = [token for place, token in enumerate(tokens) if token in tokens[:place]]
    if twice:
        raise ValueError(f"tokens has {twice[0]!r} twice; each is one token")
    if any(not token.strip() for token in tokens):
        raise ValueError("tokens has an empty one, or one of white space alone; text would be cut at every such place")
    if tokens and start is not None:
        raise ValueError(f"tokens are new ones, and start={start} brings its own; leave tokens out, or train a new adapter")


class PretrainConfig(TuningConfig):
    """Pretraining: documents, a tokenizer and a size become a base model; or documents and a base model, which learns on."""

    data: Input
    """A corpus stage, a file or folder of text, or a hub data set."""
    read: ReadConfig = ReadConfig()
    """How files that nobody curated are read."""
    tokenizer: Input | None = None
    """A tokenizer stage, a folder with tokenizer.json, or a hub name; empty only with `base`, whose own it is then."""
    base: Input | None = None
    """A model to go on from: a stage, a Hugging Face folder, or a hub name; empty: a new one."""
    model: ModelSection = ModelSection()
    """The size of a new model."""
    batch: BatchSection = BatchSection()
    """Micro-batch."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    prompts: list[str] = []
    """Fixed texts that the model continues at every evaluation."""
    seed: int | None = None
    """Seed; empty: the recipe's."""

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        if (self.tokenizer is None) == (self.base is None):
            raise ValueError("give a tokenizer for a new model, or a base model, which brings its own; not both and not neither")
        if self.base is None and self.adapter.method != "full":
            raise ValueError(f"adapter.method={self.adapter.method} freezes the model, and without base=MODEL it is a new one")
        if self.base is not None:
            return self
        if self.tokens:
            raise ValueError("tokens are added to those of a base, and there is none; train a tokenizer that has them")
        limit = self.model.context_length or PRESETS[self.model.preset].context_length
        if self.batch.length is not None and self.batch.length > limit:
            raise ValueError(f"batch.length {self.batch.length} is more than the model's context_length {limit}")
        return self


class SFTConfig(TuningConfig):
    """Supervised fine-tuning on conversations."""

    model: Input
    """A model stage, a Hugging Face folder, or a hub name."""
    data: list[Input] | Input
    """A questions stage, files of any accepted format, or a hub data set; several are mixed."""
    read: ReadConfig = ReadConfig()
    """How the files of `data` are read."""
    weights: list[float] | None = None
    """Share of each source in the mixture, in the order of `data`; empty: by their sizes."""
    truncation: Literal["drop", "truncate", "raise"] = "drop"
    """What to do with a conversation longer than `batch.length`."""
    heldout: Input | None = None
    """A corpus, or files of text, whose held-out documents measure forgetting; empty: not measured during training."""
    heldout_read: HeldOutConfig = HeldOutConfig()
    """How files of `heldout` that nobody curated are read."""
    template: str = ""
    """Chat template: a built-in one by name, or the path of a .jinja file; empty: the model's own."""
    batch: BatchSection = BatchSection()
    """Micro-batch."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    prompts: list[str] = []
    """Fixed questions that the model answers at every evaluation."""
    seed: int | None = None
    """Seed; empty: the recipe's."""

    @model_validator(mode="after")
    def _check(self) -> SFTConfig:
        if self.template and not self.template.endswith(JINJA_FILE) and self.template not in TEMPLATES:
            raise ValueError(
                f"unknown template {self.template!r}. {nearest(self.template, TEMPLATES)} A file of yours ends in {JINJA_FILE}."
            )
        return self


class EvaluateConfig(Config):
    """Evaluation of models side by side."""

    models: dict[str, Input]
    """Name -> model stage, folder or hub name; the first is the one that changes are measured from."""
    questions: Input | None = None
    """A questions stage with evaluation.jsonl."""
    heldout: Input | None = None
    """A corpus, or files of text, whose held-out documents give bits per byte; the n-gram counts the others."""
    heldout_read: HeldOutConfig = HeldOutConfig()
    """How files of `heldout` that nobody curated are read."""
    examples: int = Field(1000, ge=1)
    """At most so many questions of each set."""
    batch_size: int = Field(64, ge=1)
    """Answers written at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Type of the weights while answers are written and text is measured; auto: bf16 or fp16 on a GPU, fp32 on a CPU."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are written; greedy by default."""


class SynthVerbConfig(SynthConfig):
    """Questions and answers and the documents that they come from, or preferences and the questions that they are about."""

    source: Input
    """A corpus stage, a file or folder of documents, or a hub data set; of `preferences` a questions stage, or prompts of any accepted
    form."""
    read: ReadConfig = ReadConfig()
    """How files that nobody curated are read."""
    preferences: PreferencesSection | None = None
    """Compare answers to the questions of `source`, and write preferences; of the keys above only source, read and seed are read then."""

    @model_validator(mode="after")
    def _check_preferences(self) -> SynthVerbConfig:
        if self.preferences is None:
            return self
        for name, field in SynthConfig.model_fields.items():
            if name != "seed" and getattr(self, name) != field.get_default(call_default_factory=True):
                raise ValueError(f"{name} decides what questions are made, and with preferences none are; set it in the questions stage")
        return self
