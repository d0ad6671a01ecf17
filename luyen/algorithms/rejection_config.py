"""How answers are drawn for rejection sampling. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from luyen.core.config import Config


class DrawConfig(Config):
    """How the answers are drawn that the best is taken from."""

    temperatures: list[Annotated[float, Field(gt=0, le=100)]] = [1.0]
    """Of the draws. Of several the one is taken whose best answers to the first prompts are worth most; Llama 2 found 1.2 to 1.3 best for
    10 to 100 answers."""
    search: int = Field(default=32, ge=1)
    """Prompts that a choice among several temperatures is made by."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the fewest most likely tokens whose probabilities reach this sum."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens; one that did not end by itself is never the best."""
    batch_size: int = Field(default=128, ge=1)
    """Answers written at a time."""
    part: int = Field(default=64, ge=1)
    """Prompts after whose answers are scored and on disk; a run that is stopped goes on there."""

    @model_validator(mode="after")
    def _check(self) -> DrawConfig:
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"draw.temperatures is {self.temperatures}; expected one or more different numbers")
        return self
