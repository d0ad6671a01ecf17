"""What the page for preferences is given: who writes answers, to which prompts, and where it is served. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from luyen.core.config import Config, Input
from luyen.data.config import ReadConfig
from luyen.inference.config import SamplingConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_KEY = 16
CATEGORIES = ("wrong", "invented", "incomplete", "off topic", "style", "harmful")


class LabelSamplingConfig(SamplingConfig):
    """How the answers of a pair are drawn."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """0 takes the most likely token; 1 samples the model's own distribution. `temperatures` goes over it."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens."""


class ServeConfig(Config):
    """Where the page is."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own (127.0.0.1, ::1, localhost) needs a key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """Port; 0: one that is free."""
    key: str = ""
    """What a person must know to see the page, at least 16 characters: the address is printed with ?key=... behind it."""

    @model_validator(mode="after")
    def _guarded(self) -> ServeConfig:
        if self.host not in LOOPBACK and not self.key:
            raise ValueError(f"serve.host={self.host} can be reached by others and needs a key; give serve.key, or leave the host out")
        if self.key and (len(self.key) < SHORTEST_KEY or not self.key.isascii() or not self.key.isalnum()):
            raise ValueError(f"serve.key must be {SHORTEST_KEY} letters and digits or more")
        return self


class LabelConfig(Config):
    """Pairs of answers for people to judge: written by models while they read, or ready ones from files."""

    models: dict[str, Input] = {}
    """Who writes answers, each under a name: models.NAME=FOLDER; a model, an adapter or a stage that holds one."""
    prompts: Input | None = None
    """What is asked: a questions stage, of which the training rows are taken, or any data whose rows ask something."""
    pairs: Input | None = None
    """Ready pairs in place of models and prompts: prompt/chosen/rejected or Anthropic HH; which of the two was chosen is not shown."""
    temperatures: list[Annotated[float, Field(ge=0, le=100)]] = []
    """Temperatures that take turns: every model with each of them is one who writes. Empty: sampling.temperature alone."""
    sampling: LabelSamplingConfig = LabelSamplingConfig()
    """How answers are drawn."""
    read: ReadConfig = ReadConfig()
    """How the data files are read."""
    ahead: PositiveInt = 8
    """Pairs kept written ahead of the person who has the fewest left."""
    judges: NonNegativeInt = 0
    """How many people judge each pair. 0: everybody judges all, which agreement is measured best on."""
    categories: list[str] = list(CATEGORIES)
    """What can be ticked about a pair."""
    seed: int = 0
    """Shuffles the prompts, who writes, and which answer stands on the left. A folder keeps the one that it was begun with."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps: where the models are."""
    serve: ServeConfig = ServeConfig()
    """Where the page is."""

    @field_validator("categories")
    @classmethod
    def _short(cls, value: list[str]) -> list[str]:
        if len(value) > 24 or len(set(value)) < len(value) or any(not word.strip() or len(word) > 60 for word in value):
            raise ValueError("at most 24 different names of at most 60 characters")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> LabelConfig:
        if self.pairs is not None and (self.models or self.prompts is not None):
            raise ValueError("give either pairs, or models and prompts")
        if self.pairs is None and not (self.models and self.prompts is not None):
            raise ValueError("nothing to judge; give pairs=FILE, or models.NAME=FOLDER and prompts=FILE")
        alone = len(self.models) == 1 and len(set(self.temperatures)) < 2
        if alone and max(self.temperatures or [self.sampling.temperature]) == 0:
            raise ValueError("one model at temperature 0 always gives the same answer; raise sampling.temperature or name a second model")
        return self
