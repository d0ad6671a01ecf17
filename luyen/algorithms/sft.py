"""Supervised fine-tuning on conversations (Llama 2, Touvron et al., 2023, arXiv:2307.09288, section 3.1).

    L = - sum over t in A of  log p(x_t | x_1, ..., x_{t-1})        A = tokens of the assistant's answers and their ends of turn

"We zero-out the loss on tokens from the user prompt": here those positions carry no target (data/samples.py decides which, by
construction from the messages), so they cost no head and no gradient. What is minimised is then pretraining's sum over other targets.

Shapes: T tokens of a packed batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luyen.algorithms.pretrain import next_token_loss
from luyen.data.loader import Batch, PackedStream
from luyen.models.transformer import Transformer
from luyen.objectives.loss import Loss


class SFT:
    """The model learns to write the assistant's turns and to end them."""

    def __init__(self, model: Transformer, stream: PackedStream) -> None:
        self.model, self.stream = model, stream

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Packed conversations without end; none sees another."""
        return self.stream.batches(state)

    def loss(self, batch: Batch) -> Loss:
        """Summed negative log-likelihood (nats) of the answers' tokens."""
        return next_token_loss(self.model, batch)
