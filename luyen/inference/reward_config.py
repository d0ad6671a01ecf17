"""What answers are scored by. Nothing here imports torch, so a wrong key is told at once.

A config is data: that it names a program or another machine's address makes nothing run and sends nothing (core/consent.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from luyen.core import consent
from luyen.core.config import Config, Input
from luyen.core.errors import ConfigError

Measure = Literal["right", "exact_match", "f1", "chrf", "number", "said_unknown", "invented"]
KINDS = ("model", "measure", "program", "url")


class SourceConfig(Config):
    """One thing that scores an answer."""

    model: Input | None = None
    """A reward model of any tokenizer and family: a stage of `reward`, its folder, or a hub name."""
    output: Literal["reward", "safety"] = "reward"
    """Which number of a reward model: its reward, or its second output (loss.safety_head) for what is safe."""
    measure: Measure | None = None
    """How near it is to the answer that the prompt's data has. right: exact_match where there is one, said_unknown where there is none to
    give; number: the last number is the same. invented counts as its opposite."""
    program: Input | None = None
    """A Python file, run as a process of its own that reads a JSON line for each answer and writes one; needs --allow FILE."""
    url: str = ""
    """An HTTP endpoint that takes and gives JSON; one on another machine needs --allow HOST."""
    key: str = ""
    """Environment variable whose value is sent to `url` as a bearer token; its name ends in _KEY or _TOKEN. Empty: none."""
    batch: int = Field(default=32, ge=1)
    """Answers in a request to `url`."""
    seconds: float = Field(default=60.0, gt=0, le=86_400)
    """Longest wait for a program's line or an endpoint's reply; then the run ends before anything is learned from the answers."""

    @model_validator(mode="after")
    def _check_source(self) -> SourceConfig:
        given = [kind for kind in (*KINDS, "gate", "mix") if getattr(self, kind, None)]
        known = [kind for kind in (*KINDS, "gate", "mix") if hasattr(self, kind)]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(f'reward.{kind}' for kind in known)}; not {' and '.join(given) or 'none'}")
        if self.output != "reward" and self.model is None:
            raise ValueError(f"output={self.output} is a reward model's, and no model is given")
        for name, kinds in (("batch", ("url",)), ("seconds", ("url", "program"))):
            if getattr(self, name) != SourceConfig.model_fields[name].default and not any(getattr(self, kind) for kind in kinds):
                raise ValueError(f"{name}={getattr(self, name):g} is read with {' or '.join(kinds)} alone")
        if self.url:
            check_url(self.url)
        if self.key and not self.url:
            raise ValueError(f"key={self.key} is sent to a url, and none is given")
        if self.key and not self.key.endswith(("_KEY", "_TOKEN")):
            raise ValueError(f"key={self.key} names no variable for a key; expected a name that ends in _KEY or _TOKEN")
        return self


class GateConfig(Config):
    """Llama 2's two reward models as one (arXiv:2307.09288, section 3.2.3)."""

    helpful: SourceConfig
    """Scores how helpful an answer is."""
    safe: SourceConfig
    """Scores how safe it is; this one counts for safety prompts, and wherever it is below `threshold`."""
    threshold: float = Field(default=0.15, ge=0, le=1)
    """Of the safety score after the sigmoid; at 0.15 the paper's model has a precision of 0.89 and a recall of 0.55."""
    prompts: Input | None = None
    """Which prompts are safety ones: those that stand in this file or stage of questions, conversations or preferences."""
    sets: list[str] = []
    """Which prompts are safety ones: those of a questions stage whose `set` is one of these."""

    @model_validator(mode="after")
    def _check_gate(self) -> GateConfig:
        for name in ("helpful", "safe"):
            if getattr(self, name).measure == "chrf":
                raise ValueError(f"gate.{name}.measure=chrf goes to 100, and a gate takes probabilities; take f1, right or another")
        return self


class GatedConfig(SourceConfig):
    """One thing that scores an answer, or two behind a gate."""

    gate: GateConfig | None = None
    """Llama 2's gate: the safety score for safety prompts and for what is unsafe, else the helpfulness score."""


class WeightedConfig(GatedConfig):
    """A part of a sum."""

    weight: float = 1.0
    """What its score is multiplied by; below 0 it counts against an answer."""


class RewardConfig(GatedConfig):
    """What scores an answer: one source, a gate, or a weighted sum."""

    mix: dict[str, WeightedConfig] = {}
    """Name -> source with its weight; the reward is the sum."""


def check_url(url: str) -> tuple[str, int | None]:
    """Host and port of an http or https address. ValueError for another."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ValueError(f"url={url} is no address; expected http://HOST:PORT/PATH or https://..., without a user name")
    return parts.hostname, parts.port


def sources(config: GatedConfig) -> list[SourceConfig]:
    """Every source of a reward, those inside its gates and its mixture."""
    inner = [config.gate.helpful, config.gate.safe] if config.gate is not None else []
    parts = [source for part in getattr(config, "mix", {}).values() for source in sources(part)]
    return [*inner, *parts] or [config]


def program_path(name: str) -> Path:
    """The file of a program. ConfigError for one that is no Python file."""
    path = Path(name).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError("reward.program", found=name, expected="the path of a .py file")
    return path


def check_consent(config: RewardConfig) -> None:
    """UserError where a person has to allow a program or a host on the command line and has not: before any work, not after hours."""
    for source in sources(config):
        if source.program is not None:
            consent.check_program(program_path(source.program))
        if source.url:
            consent.check_host(*check_url(source.url))
