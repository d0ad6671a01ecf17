"""How answers are drawn. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from luyen.core.config import Config


class SamplingConfig(Config):
    """How an answer is drawn from the model."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 takes the most likely token; 1 samples the model's own distribution."""
    top_k: NonNegativeInt = 0
    """Sample among the k most likely tokens only. 0: no limit."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the fewest most likely tokens whose probabilities reach this sum."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1, tokens that the prompt or the answer holds already become less likely."""
    max_new_tokens: PositiveInt = 64
    """Longest answer in tokens."""
    seed: int = 0
    """Seed of the draws."""
