"""The model that a `model:` section asks for."""

from __future__ import annotations

from luyen.core import config as configs
from luyen.models.config import TransformerConfig
from luyen.models.presets import preset
from luyen.recipe.configs import ModelSection


def model_config(section: ModelSection, vocab_size: int) -> TransformerConfig:
    """The preset with what the section changes."""
    changes = {key: value for key, value in configs.dump(section).items() if key != "preset" and value is not None}
    return preset(section.preset, vocab_size, **changes)
