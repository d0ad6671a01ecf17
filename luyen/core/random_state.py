"""Everything random in the process: seeded by one number, and out again as bytes."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import numpy
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, torch.Tensor]:
    """Every generator's state as uint8 tensors, so that it fits a safetensors file."""
    version, internal, gauss = random.getstate()
    python = json.dumps([version, list(internal), gauss]).encode()
    algorithm, keys, position, has_gauss, cached = cast(Any, numpy.random.get_state(legacy=True))
    numpy_text = json.dumps([algorithm, keys.tolist(), position, has_gauss, cached]).encode()
    states = {
        "python": torch.frombuffer(bytearray(python), dtype=torch.uint8),
        "numpy": torch.frombuffer(bytearray(numpy_text), dtype=torch.uint8),
        "torch": torch.get_rng_state(),
    }
    for index in range(torch.cuda.device_count()):
        states[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor]) -> None:
    """Put back what `random_state` gave, as far as the devices are there now."""
    version, internal, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, position, has_gauss, cached = json.loads(bytes(states["numpy"].tolist()))
    numpy.random.set_state((algorithm, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
