"""Permutations that are a pure function of what they are for: the same on every machine and numpy version."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def permutation(count: int, *purpose: object) -> NDArray[np.int64]:
    """A random order of 0..count-1 that depends only on `count` and `purpose` (for example a seed and an epoch).

    Sorts the raw 64-bit output of PCG64, whose stream numpy promises to keep (NEP 19), unlike that of `Generator.permutation`.
    """
    digest = hashlib.sha256(json.dumps([str(item) for item in purpose]).encode()).digest()
    raw = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(np.asarray(raw, dtype=np.uint64), kind="stable").astype(np.int64)
