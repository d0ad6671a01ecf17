"""Pretraining by causal language modelling (Radford et al., 2018, section 3.1, equation 1; Llama 2, arXiv:2307.09288, section 2).

    L = - sum_t  log p(x_t | x_1, ..., x_{t-1})        within one document; no token sees another document

A mixture of experts adds its `balance` times how unevenly tokens are spread over the experts (objectives/load_balance.py).

Shapes: T tokens of a packed batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from luyen.data.loader import Batch, PackedStream
from luyen.models import moe
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer
from luyen.objectives.language_model import linear_cross_entropy
from luyen.objectives.load_balance import load_balance
from luyen.objectives.loss import Loss


class Pretrain:
    """Every token of every document is predicted from the ones before it."""

    batches_ahead = True

    def __init__(self, model: Transformer, stream: PackedStream) -> None:
        self.model, self.stream = model, stream

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Packed documents without end."""
        return self.stream.batches(state)

    def loss(self, batch: Batch) -> Loss:
        """Summed negative log-likelihood of the batch's targets in nats."""
        return next_token_loss(self.model, batch)


def next_token_loss(model: Transformer, batch: Batch, each_T: Tensor | None = None) -> Loss:
    """Summed negative log-likelihood (nats) of `batch.targets_T`; positions without target never reach the head.

    `each_T`, where it is given, receives the loss of every position that has a target.
    """
    layout = Layout.packed(batch.lengths, batch.tokens_T.device)
    with moe.heard() as routings:
        hidden_TD = model(batch.tokens_T[None], layout)[0]
    total = linear_cross_entropy(
        hidden_TD, model.head_weight, batch.targets_T, each_N=each_T, positions_K=batch.trained_positions_K
    )  # fmt: skip
    return _balanced(Loss(total, batch.num_targets), model, routings)


def _balanced(loss: Loss, model: Transformer, routings: list[moe.Routing]) -> Loss:
    """The loss and, for each of its items, what the balance of the load counts; the balance by itself is a metric."""
    experts = model.config.variant.experts if routings else None
    if experts is None:
        return loss
    balance = load_balance([routing.logits_NE for routing in routings], [routing.choice_NK for routing in routings])
    metrics = {**loss.metrics, "load_balance": (balance.detach() * loss.count, float(loss.count))}
    return Loss(loss.total + experts.balance * loss.count * balance, loss.count, metrics)
