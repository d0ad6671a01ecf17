"""Reward modelling from comparisons (Llama 2, Touvron et al., 2023, arXiv:2307.09288, section 3.2.2, equation 2).

    L = -log sigmoid(r(x, y_c) - r(x, y_r) - m)        r(x, y) = w . h at the token that ends the answer y to the prompt x

"replaced with a regression head to output a scalar reward": the decoder is the chat model's, w begins at zero and so the loss at ln 2.
The prompt is read once for both answers (data/branches.py). Terms beside the equation are objectives/reward.py's.

Shapes: P pairs, S = 2P answers, chosen first; T tokens of all pieces; D hidden size; O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luyen.core.errors import DataError
from luyen.core.records import Preference, Record
from luyen.data.branches import BranchedBatch, Group
from luyen.data.pairs import GroupStream
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.models.attention import Layout
from luyen.models.scored import ScoredDecoder
from luyen.objectives.loss import Loss
from luyen.objectives.reward import MARGINS, SAFETY, ranking_losses, safety_losses

MARGIN, SAFE = "margin_G", "safe_S"
"""Columns of a batch: each pair's margin, and of each answer whether it is safe (1, 0, or -1 where nobody said)."""


@dataclass(frozen=True)
class RewardLoss:
    """What is added up."""

    centring: float = 0.0
    """Weight of the square of the two rewards' sum."""
    safety: float = 0.0
    """Weight of the safety label's cross-entropy: of the second output where the model has two, else of the reward itself."""


class RewardModel:
    """The chosen answer is to be worth more than the rejected one."""

    batches_ahead = True

    def __init__(self, model: ScoredDecoder, stream: GroupStream, loss: RewardLoss = RewardLoss()) -> None:  # noqa: B008 (frozen)
        """The stream's groups are `ended`; `columns` says what it has beside them."""
        self.model, self.stream, self.weights = model, stream, loss

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[BranchedBatch, dict[str, Any]]]:
        """Pairs without end."""
        return self.stream.batches(state)

    def loss(self, batch: BranchedBatch) -> Loss:
        """Summed ranking loss (nats) of the pairs; metrics are accuracy, the difference of the rewards and their mean."""
        layout = Layout.branched(batch.lengths, batch.trunks, batch.tokens_T.device)
        hidden_TD = self.model(batch.tokens_T[None], layout)[0]
        scores_SO = self.model.scores(hidden_TD.index_select(0, batch.last_S))
        chosen_P, rejected_P = scores_SO[:, 0].reshape(-1, 2).unbind(1)
        losses_P = ranking_losses(chosen_P, rejected_P, batch.columns.get(MARGIN), self.weights.centring)
        pairs, difference_P = float(len(losses_P)), (chosen_P - rejected_P).detach()
        metrics: dict[str, tuple[Tensor | float, float]] = {
            "accuracy": ((difference_P > 0).float().sum() + 0.5 * (difference_P == 0).float().sum(), pairs),
            "difference": (difference_P.sum(), pairs),
            "reward": (scores_SO[:, 0].detach().sum(), 2 * pairs),
        }
        total = losses_P.sum()
        if self.weights.safety:
            safety = safety_losses(scores_SO[:, -1], batch.columns[SAFE]).sum()
            total = total + self.weights.safety * safety
            metrics["safety_loss"] = (safety.detach(), pairs)
        return Loss(total, batch.num_targets, metrics)


def ended(group: Group) -> Group:
    """The sequences of a pair through the token that ends each answer, which is their last: what a reward is read at.

    A sequence that learns to write stops one before, and may have white space of the template behind. DataError without an answer.
    """
    return Group(group.id, tuple(_ended(sequence) for sequence in group.sequences))


def _ended(sequence: Sample) -> Sample:
    trained = np.flatnonzero(sequence.targets != NOT_TRAINED)
    if not trained.size:
        raise DataError(f"{sequence.id} has no answer to reward", expected="a turn of the assistant at the end")
    last = int(trained[-1])
    tokens = np.append(sequence.tokens[: last + 1], sequence.targets[last]).astype(np.int32)
    return Sample(sequence.id, tokens, np.full(len(tokens), NOT_TRAINED, np.int32))


def columns(records: Sequence[Record], margins: str, safety: bool) -> Mapping[str, Tensor]:
    """What the pairs' rows say beside their texts, as the loss reads it. DataError where no row says what is asked for.

    margins: none, row (its own number), or the name of a table, by the grade; a row that does not say has margin 0.
    """
    rows = [record for record in records if isinstance(record, Preference)]
    found: dict[str, Tensor] = {}
    if margins != "none":
        told = [row.margin if margins == "row" else _by_grade(row, margins) for row in rows]
        if all(margin is None for margin in told):
            what = "margin" if margins == "row" else "grade"
            raise DataError(f"loss.margins={margins}, and no pair has a {what}", found=f"{len(rows):,} pairs without",
                            expected=f"a column {what}", fix="Set loss.margins=none, or give data that says how much better.")  # fmt: skip
        found[MARGIN] = torch.tensor([0.0 if margin is None else margin for margin in told])
    if safety:
        labels = [(-1, -1) if row.safety is None else tuple(map(int, SAFETY[row.safety])) for row in rows]
        if all(row.safety is None for row in rows):
            raise DataError("loss.safety is set, and no pair has a safety label", found=f"{len(rows):,} pairs without",
                            expected=f"a column safety: {', '.join(SAFETY)}", fix="Set loss.safety=0, or give labels.")  # fmt: skip
        found[SAFE] = torch.tensor(labels, dtype=torch.int64)
    return found


def _by_grade(row: Preference, table: str) -> float | None:
    return None if row.grade is None else MARGINS[table][row.grade]
