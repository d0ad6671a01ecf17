"""Language identification with py3langid (a fork of langid.py, Lui and Baldwin 2012: byte n-grams, naive Bayes, 97 languages)."""

from __future__ import annotations

import functools
import re

from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import Field

from luyen.core.config import Config
from luyen.core.errors import ConfigError, nearest

SAMPLE_CHARACTERS = 700
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|https?://\S{1,2000}|[\d_=+*/<>{}()\[\]|#~^&%$@\\-]+", re.DOTALL)


class LanguageConfig(Config):
    """How languages are told."""

    min_probability: float = Field(default=0.5, ge=0, le=1)
    """A document whose best language is less probable than this is dropped (only when `languages` names some)."""
    min_characters: int = Field(default=20, ge=0)
    """Documents with fewer letters than this cannot be told and are dropped (only when `languages` names some)."""
    only_listed: bool = False
    """Choose among the listed languages only, instead of dropping the documents in any other."""


@functools.cache
def identifier(languages: tuple[str, ...] = ()) -> LanguageIdentifier:
    """The identifier with normalised probabilities, restricted to `languages` if any. Raises ConfigError for an unknown code."""
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for language in languages:
        if language not in model.labels:
            raise ConfigError("languages", found=repr(language), expected="an ISO 639-1 code", fix=nearest(language, model.labels))
    if languages:
        model.set_languages(list(languages))
    return model


def sample(text: str) -> str:
    """What is classified: the beginning, middle and end of the prose, code blocks, addresses and signs left out."""
    size = SAMPLE_CHARACTERS
    if len(text) > 12 * size:
        middle = len(text) // 2 - 2 * size
        text = f"{text[: 4 * size]}\n{text[middle : middle + 4 * size]}\n{text[-4 * size :]}"
    prose = " ".join(_NOT_PROSE.sub(" ", text).split())
    if len(prose) < 40:
        prose = " ".join(text.split())
    if len(prose) > 3 * size:
        middle = (len(prose) - size) // 2
        prose = f"{prose[:size]} {prose[middle : middle + size]} {prose[-size:]}"
    return prose


def detect(text: str, languages: tuple[str, ...] = ()) -> tuple[str, float]:
    """The most probable language (ISO 639-1) and its probability; `languages` restricts the choice."""
    language, probability = identifier(languages).classify(sample(text))
    return str(language), float(probability)
