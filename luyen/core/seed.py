"""Seeds for single purposes, derived from one. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json


def derive(seed: int, *names: object) -> int:
    """A seed below 2**63 for one purpose: equal arguments give equal seeds on every machine."""
    text = json.dumps([seed, *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
