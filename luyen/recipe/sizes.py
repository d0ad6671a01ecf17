"""Sizes that several modules must agree on: the model of a `model:` section, its rows, what is measured while it trains."""

from __future__ import annotations

from luyen.core import config as configs
from luyen.core.errors import ConfigError
from luyen.models.config import TransformerConfig
from luyen.models.families import written_as
from luyen.models.presets import preset
from luyen.recipe.configs import BatchSection, ModelSection

USUAL_ROW = 512
"""Longest row in tokens that is chosen when nothing is said."""
HELD_OUT_BYTES = 200_000
"""Held-out text measured during training, so that measuring stays cheap; the evaluation stage takes all of it."""
SAMPLE_TOKENS = 48
"""Most tokens of an answer to one of the fixed prompts."""


def model_config(section: ModelSection, vocab_size: int) -> TransformerConfig:
    """The preset with what the section changes. Raises ConfigError, and ModelError for a decoder that could not be written in the end."""
    changes = {key: value for key, value in configs.dump(section).items() if key != "preset" and value is not None}
    config = preset(section.preset, vocab_size, **changes)
    written_as(config)
    return config


def row_length(batch: BatchSection, context_length: int) -> int:
    """Tokens in a packed row: as the section says, else the model's context length, at most `USUAL_ROW`.

    Raises ConfigError when the section asks for more than the model's context.
    """
    if batch.length is None:
        return min(USUAL_ROW, context_length)
    if batch.length > context_length:
        fix = f"Set batch.length={context_length}, or leave it out."
        raise ConfigError("batch.length", found=batch.length, expected=f"at most the model's {context_length}", fix=fix)
    return batch.length


def with_rows(model: TransformerConfig | None, tokens: int) -> TransformerConfig | None:
    """With a row for each new token; rows that the model has and its tokenizer lacks, which would be used first, are not known here."""
    return model and model.model_copy(update={"vocab_size": model.vocab_size + tokens})
