"""A decoder, samples and configs small enough to train in milliseconds, with the real classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from luyen.algorithms.pretrain import Pretrain
from luyen.core.config import load
from luyen.data.loader import PackedStream
from luyen.data.samples import Sample
from luyen.engine.config import TrainConfig
from luyen.models.transformer import Transformer, TransformerConfig

VOCABULARY = 48
CONTEXT = 32


def toy_model(seed: int = 0, **changes: Any) -> Transformer:
    """A decoder of two layers and about 8,000 weights."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 40, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "context_length": CONTEXT}
    return Transformer(load(TransformerConfig, {"vocab_size": VOCABULARY, **size, **changes}))


def toy_samples(count: int = 60, seed: int = 0) -> list[Sample]:
    """Sequences that count up by one of three steps, of 3 to 32 positions; every fifth target is not trained."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        length, step = int(generator.integers(3, CONTEXT + 1)), int(generator.integers(1, 4))
        ids = (int(generator.integers(VOCABULARY)) + step * np.arange(length + 1)) % VOCABULARY
        targets = ids[1:].astype(np.int32)
        targets[::5] = -100
        samples.append(Sample(f"toy-{index}", ids[:-1].astype(np.int32), targets))
    return samples


def toy_algorithm(rows: int = 2, seed: int = 0, **changes: Any) -> Pretrain:
    """Pretraining of the toy decoder on the toy samples."""
    return Pretrain(toy_model(seed, **changes), PackedStream(toy_samples(), capacity=CONTEXT, rows=rows, seed=seed))


def toy_config(**values: Any) -> TrainConfig:
    """Eight steps on the CPU."""
    return load(TrainConfig, {"steps": 8, "device": "cpu", "optimizer": {"learning_rate": 1e-2}, **values})
