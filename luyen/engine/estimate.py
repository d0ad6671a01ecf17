"""Time and memory of a training run, from sizes alone, before anything is built.

Operations per token: 6 for every weight that multiplies, and 6 L H T for causal attention (Chowdhery et al., 2022,
arXiv:2204.02311, appendix B, halved since half of the square is masked). Memory: weights, gradients and optimizer state at four
bytes, and the activations that a block keeps for its backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from luyen.engine.config import TrainConfig
from luyen.models.config import TransformerConfig
from luyen.models.presets import count_parameters

UTILISATION = 0.35
"""Share of the matrix-product rate that a training step of a small model reaches; bench/pretrain.py measures it."""
PROCESS_BYTES = 450_000_000
"""Python with torch and the data libraries loaded."""


@dataclass(frozen=True)
class Estimate:
    """What a training run is expected to take."""

    parameters: int
    tokens: int
    operations: float
    """Floating-point operations."""
    bytes: int
    """Peak memory of the process."""

    def seconds(self, rate: float) -> float:
        """Time on a device that multiplies matrices at `rate` operations per second."""
        return self.operations / (rate * UTILISATION)


def estimate_training(model: TransformerConfig, train: TrainConfig, rows: int, length: int) -> Estimate:
    """Estimate for `train.steps` updates on micro-batches of `rows` full rows of `length` tokens."""
    parameters = count_parameters(model)
    multiplied = parameters - (0 if model.tied else model.vocab_size * model.hidden_size)
    per_token = 6.0 * multiplied + 6.0 * model.num_layers * model.num_heads * model.head_dim * length
    tokens = train.steps * train.accumulation * rows * length
    return Estimate(parameters, tokens, per_token * tokens, _peak_bytes(model, train, parameters, rows * length))


def _peak_bytes(model: TransformerConfig, train: TrainConfig, parameters: int, tokens: int) -> int:
    """Weights, gradients and optimizer, then activations of one micro-batch, all in fp32."""
    moments = 2 if train.optimizer.name == "adamw" else 1.5
    heads = model.head_dim * (2 * model.num_heads + 4 * model.num_kv_heads)
    kept = 6 * model.hidden_size + heads + 3 * model.intermediate_size
    layers = {"keep": model.num_layers, "selective": (model.num_layers + 1) // 2, "recompute": 1}[train.activations]
    activations = tokens * (layers * kept + model.num_layers * model.hidden_size)
    logits = min(tokens * model.vocab_size, 32_000_000) * 2
    return PROCESS_BYTES + 4 * int(parameters * (2 + moments) + activations + logits)
