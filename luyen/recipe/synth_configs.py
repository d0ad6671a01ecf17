"""The part of the verb `synth` that makes preferences. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luyen.core.config import Config, Input
from luyen.inference.config import SamplingConfig
from luyen.synthesis.preferences import CORRUPTIONS, Corruption, Domain


class DrawnConfig(SamplingConfig):
    """How answers that differ are drawn."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """0 takes the most likely token, so that all answers of a model are one; 1 samples the model's own distribution."""


class AnswersSection(Config):
    """Answers that models write, to be compared."""

    models: list[Input] = []
    """Chat models: stages, folders, hub names; the same one twice is asked twice."""
    samples: int = Field(default=1, ge=1)
    """Answers of each model to each question."""
    sampling: DrawnConfig = DrawnConfig()
    """How they are drawn."""
    batch_size: int = Field(default=64, ge=1)
    """Answers written at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; a judge's model is there too."""


class JudgeSection(Config):
    """Who says which of two answers is best: one of the two."""

    model: Input | None = None
    """A chat model: a stage, a folder, or a hub name."""
    url: str = ""
    """An endpoint of OpenAI's protocol: what comes before /chat/completions, such as http://127.0.0.1:8000/v1."""
    name: str = ""
    """The model's name there."""

    @model_validator(mode="after")
    def _check(self) -> JudgeSection:
        if (self.model is None) == (not self.url):
            raise ValueError("give judge.model or judge.url; not both and not neither")
        if bool(self.url) != bool(self.name):
            raise ValueError("judge needs both url and name, the model's name there")
        return self


class PreferencesSection(Config):
    """Preferences instead of questions, from the questions and answers of `source`."""

    domain: Domain = "helpfulness"
    """helpfulness: right answers over worse ones. safety: for made-up names the admission over an invention, for taught entries the right
    answer over the admission."""
    pairs: int | None = Field(default=None, ge=1)
    """Most questions that answers are compared for; empty: all, and of safety 1,000."""
    documents: Input | None = None
    """safety: the corpus of `source`, by which a made-up name is known not to exist."""
    taught: float = Field(default=0.5, ge=0, lt=1)
    """safety: share of the questions that are about taught entries."""
    corruptions: list[Corruption] | None = None
    """helpfulness: how a right answer is spoilt: other, cut, shuffled; empty: all of them in turn, none where models answer."""
    gold: bool = True
    """The right answer, or the admission, is one of those compared; without it answers of models alone are."""
    answers: AnswersSection = AnswersSection()
    """Answers of models, in the place of spoilt and invented ones."""
    measure: Literal["chrf", "f1", "exact_match"] = "chrf"
    """What an answer of a model is worth beside the right one; to a made-up name an admission is worth 1 and all else 0."""
    least: float = Field(default=0.05, ge=0, lt=1)
    """Difference of the best and the worst score that a pair must exceed."""
    judge: JudgeSection | None = None
    """A judge in place of the scores, asked both ways round about each question's first two answers."""

    @model_validator(mode="after")
    def _check(self) -> PreferencesSection:
        if (self.domain == "safety") != (self.documents is not None):
            raise ValueError(f"domain={self.domain} and documents={self.documents}: safety needs the documents, nothing else reads them")
        if self.domain == "safety" and self.corruptions is not None:
            raise ValueError("corruptions spoil right answers, which is domain=helpfulness")
        if not self.gold and len(self.answers.models) * self.answers.samples < 2:
            raise ValueError("gold=false compares answers of models; give two answers.models, or answers.samples=2")
        return self

    @property
    def ways(self) -> list[Corruption]:
        """How right answers are spoilt."""
        if self.corruptions is not None:
            return self.corruptions
        return [] if self.answers.models else list(CORRUPTIONS)
