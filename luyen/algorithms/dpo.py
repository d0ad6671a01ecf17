"""Direct Preference Optimization (Rafailov et al., 2023, arXiv:2305.18290, equation 7) and the losses that came of it.

    L = -log sigmoid(beta [log pi(y_c|x) / ref(y_c|x)  -  log pi(y_r|x) / ref(y_r|x)])

of each pair of a chosen and a rejected answer to x. IPO, cDPO, robust DPO and hinge put another function in the place of -log sigmoid;
ORPO and SimPO compare the log-probabilities themselves and have no reference (objectives/preference.py). The prompt is read once for both
answers (data/branches.py). Before the first update the policy is its reference, so the first loss of DPO is ln 2.

Shapes: P pairs, S = 2P sequences (chosen first), K trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from luyen.algorithms.reference import Reference
from luyen.algorithms.sequences import by_sequence, token_log_probabilities, trained_tokens
from luyen.data.branches import BranchedBatch
from luyen.data.pairs import GroupStream
from luyen.models.transformer import Transformer
from luyen.objectives.loss import Loss
from luyen.objectives.preference import Answers, PreferenceLoss, pair_losses, pair_metrics

PLAIN = PreferenceLoss()


class DPO:
    """The chosen answer is to become likelier than the rejected one, beside what the reference says of both."""

    batches_ahead = True

    def __init__(
        self, model: Transformer, stream: GroupStream, reference: Reference | None = None, objective: PreferenceLoss = PLAIN
    ) -> None:  # fmt: skip
        """The stream's groups are pairs. Without a reference only the losses that have none go."""
        if objective.needs_reference and reference is None:
            raise ValueError(f"{objective.name} compares the policy with a reference")
        self.model, self.stream, self.objective = model, stream, objective
        self.reference = reference if objective.needs_reference else None

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[BranchedBatch, dict[str, Any]]]:
        """Pairs without end."""
        return self.stream.batches(state)

    def loss(self, batch: BranchedBatch) -> Loss:
        """Summed loss of the pairs."""
        chosen, rejected = self.answers(batch)
        losses_P = pair_losses(chosen, rejected, self.objective)
        return Loss(losses_P.sum(), batch.num_targets, pair_metrics(chosen, rejected, self.objective))

    def answers(self, batch: BranchedBatch) -> tuple[Answers, Answers]:
        """The chosen and the rejected answers, with what policy and reference give them."""
        reference_S = None if self.reference is None else self.reference(batch)
        policy_S = by_sequence(token_log_probabilities(self.model, batch), batch)
        tokens_S = trained_tokens(batch)
        return _side(0, policy_S, tokens_S, reference_S), _side(1, policy_S, tokens_S, reference_S)

    @torch.no_grad()
    def measure(self, stream: GroupStream) -> dict[str, float]:
        """The mean loss and metrics of all pairs of a stream, its reference's figures among its columns where the loss has one."""
        sums: dict[str, tuple[Tensor | float, float]] = {}
        device = self.model.head_weight.device
        for start in range(0, len(stream.groups), stream.size):
            batch = stream.batch(range(start, min(start + stream.size, len(stream.groups)))).to(device)
            loss = self.loss(batch)
            for name, (total, count) in {**loss.metrics, "loss": (loss.total, float(loss.count))}.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + count)
        return {name: float(total) / count for name, (total, count) in sums.items()}


def _side(which: int, policy_S: Tensor, tokens_S: Tensor, reference_S: Tensor | None) -> Answers:
    return Answers(policy_S[which::2], tokens_S[which::2], None if reference_S is None else reference_S[which::2])
