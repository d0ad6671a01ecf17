"""Finding control tokens in text that a template wrote, as tokenizers does: leftmost, then longest."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping


def split_control(markup: str, control: Mapping[str, int]) -> list[tuple[str, int | None]]:
    """Markup cut into (text, None) and (control token's string, its id). Never give it text that somebody typed."""
    pattern = _pattern(tuple(control))
    if pattern is None:
        return [(markup, None)] if markup else []
    return [(part, control.get(part)) for part in pattern.split(markup) if part]


@functools.lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted((name for name in names if name), key=lambda name: (-len(name), name))
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
