"""Supervised fine-tuning on conversations (Llama 2, Touvron et al., 2023, arXiv:2307.09288, section 3.1).

    L = - sum over t in A of  log p(x_t | x_1, ..., x_{t-1})        A = tokens of the assistant's answers and their ends of turn

"We zero-out the loss on tokens from the user prompt": here those positions carry no target (data/samples.py decides which, by
construction from the messages), so they cost no head and no gradient. What is minimised is then pretraining's sum over other targets.

Shapes: T tokens of a packed batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luyen.algorithms.pretrain import next_token_loss
from luyen.core.device import to_device
from luyen.data.loader import Batch, PackedStream
from luyen.models.transformer import Transformer
from luyen.objectives.loss import Loss


class SFT:
    """The model learns to write the assistant's turns and to end them."""

    batches_ahead = True

    def __init__(self, model: Transformer, stream: PackedStream, sources: Sequence[str] = ()) -> None:
        """`sources`: beginnings of sample ids, up to the colon, whose losses are logged apart; the data of a mixture."""
        self.model, self.stream, self.sources = model, stream, tuple(sources)

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Packed conversations without end; none sees another."""
        return self.stream.batches(state)

    def loss(self, batch: Batch) -> Loss:
        """Summed negative log-likelihood (nats) of the answers' tokens."""
        if not self.sources:
            return next_token_loss(self.model, batch)
        each_T = torch.zeros(batch.tokens_T.shape, device=batch.tokens_T.device)
        loss = next_token_loss(self.model, batch, each_T)
        return Loss(loss.total, loss.count, {**loss.metrics, **self._by_source(batch, each_T)})

    def _by_source(self, batch: Batch, each_T: Tensor) -> dict[str, tuple[Tensor, float]]:
        """Name -> (sum, count) of every source that has targets in the batch; nothing is read back from the device."""
        places = [self.sources.index(identifier.partition(":")[0]) for identifier in batch.sample_ids]
        place_T = to_device(torch.from_numpy(np.repeat(places, batch.lengths)), each_T.device)
        found = {}
        for place, name in enumerate(self.sources):
            count = sum(trained for own, trained in zip(places, batch.trained, strict=True) if own == place)
            if count:
                found[f"loss_{name}"] = ((each_T * (place_T == place)).sum(), float(count))
        return found
