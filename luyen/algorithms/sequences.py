"""What the algorithms that compare answers ask of a model: the log-probability of every answer, and of its tokens.

Shapes: S sequences, T tokens, K trained tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luyen.data.branches import BranchedBatch
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer
from luyen.objectives.log_probability import target_log_probabilities


def token_log_probabilities(
    model: Transformer, batch: BranchedBatch, temperature: float = 1.0, entropy_K: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Log-probability (nats) of every trained token, (K,); `entropy_K` receives the entropy of what it was drawn from."""
    layout = Layout.branched(batch.lengths, batch.trunks, batch.tokens_T.device)
    hidden_TD = model(batch.tokens_T[None], layout)[0]
    hidden_KD, targets_K = hidden_TD.index_select(0, batch.positions_K), batch.targets_T.index_select(0, batch.positions_K)
    return target_log_probabilities(hidden_KD, model.head_weight, targets_K, temperature, entropy_K)


def by_sequence(each_K: Tensor, batch: BranchedBatch) -> Tensor:
    """Sums over the trained tokens of each sequence, (S,)."""
    return each_K.new_zeros(batch.num_sequences).index_add(0, batch.sequence_K, each_K)


def trained_tokens(batch: BranchedBatch) -> Tensor:
    """How many trained tokens each sequence has, (S,), in fp32."""
    return by_sequence(torch.ones_like(batch.sequence_K, dtype=torch.float32), batch)
