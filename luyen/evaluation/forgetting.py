"""Forgetting: what later training took from the text that a model had learnt before, as held-out bits per byte side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luyen.evaluation.perplexity import BitsPerByte


def table(costs: Mapping[str, BitsPerByte]) -> list[dict[str, Any]]:
    """One row a model, in order: its bits per byte and the difference from the first model's. Above zero is forgotten, below is learnt."""
    rows: list[dict[str, Any]] = []
    for name, cost in costs.items():
        first = rows[0]["heldout_bits_per_byte"] if rows else cost.value
        rows.append({
            "model": name, "heldout_bits_per_byte": cost.value, "difference": cost.value - first,
            "bytes": cost.bytes, "tokens": cost.tokens, "unknown_tokens": cost.unknown,
        })  # fmt: skip
    return rows
