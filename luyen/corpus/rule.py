"""What a quality rule is: a measure of one document, and what is too low or too high for each preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from luyen.corpus.words import Words


@dataclass(frozen=True)
class Rule:
    """One rule. A document is dropped when its measure is `below` or `above` the threshold; None switches the rule off."""

    name: str
    fails: Literal["below", "above"]
    web: float | None
    reference: float | None
    source: str
    measure: Callable[[Words], float]
    datatrove: float | None = None
