"""Kahneman-Tversky Optimization (Ethayarajh et al., 2024, arXiv:2402.01306, equations 7 and 8): answers judged one by one.

    L = w_good (1 - sigmoid(beta [r(y) - z]))  for a good answer,  w_bad (1 - sigmoid(beta [z - r(y)]))  for a bad one
    r(y) = log pi(y|x) / ref(y|x),      z = max(0, mean of r(y') over answers y' to other prompts)

z is the policy's distance from its reference, which a person takes for granted: gains and losses count from there. It is estimated on the
micro-batch, without gradient, from one answer at every prompt that is not its own (data/pairs.py: mismatched), so unlike a sum it depends
on how a step is split into micro-batches: larger ones estimate it better. apo_zero_unpaired has no z.

Shapes: N judged answers, S sequences: N, or with z 2N, each answer and then the other one at its prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from luyen.algorithms.reference import Reference
from luyen.algorithms.sequences import by_sequence, token_log_probabilities, trained_tokens
from luyen.core.errors import ConfigError
from luyen.data.branches import BranchedBatch
from luyen.data.pairs import GroupStream
from luyen.models.transformer import Transformer
from luyen.objectives.loss import Loss
from luyen.objectives.preference import Answers, PreferenceLoss, answer_losses, answer_metrics, divergence

GOOD = "good_G"
"""Column: whether each answer is a good one."""
PLAIN = PreferenceLoss("kto")


class JudgedBatch(BranchedBatch):
    """Judged answers whose baseline is that of the batch."""

    def share(self, part: int, parts: int) -> BranchedBatch:
        """The batch itself: a piece would have another baseline. ConfigError for several parts."""
        if parts > 1:
            raise ConfigError("train.accumulation with loss.name=kto", found=f"micro-batches that {parts} processes would share",
                              expected="whole ones: the baseline is a micro-batch's",
                              fix="Make train.accumulation a multiple of the processes, or set loss.name=apo_zero_unpaired.")  # fmt: skip
        return self


class KTO:
    """Good answers are to become likelier beside the reference, bad ones less likely, both from where the policy is."""

    batches_ahead = True

    def __init__(self, model: Transformer, stream: GroupStream, reference: Reference, objective: PreferenceLoss = PLAIN) -> None:
        """The stream has the column `GOOD`, and its groups a mismatched answer each where the loss has a baseline."""
        self.model, self.stream, self.reference, self.objective = model, stream, reference, objective
        self.baseline = objective.name == "kto"

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[BranchedBatch, dict[str, Any]]]:
        """Judged answers without end."""
        for batch, after in self.stream.batches(state):
            yield self._whole(batch), after

    def loss(self, batch: BranchedBatch) -> Loss:
        """Summed loss of the judged answers."""
        good_N = batch.columns[GOOD]
        reference_S = self.reference(batch)
        policy_S = by_sequence(token_log_probabilities(self.model, batch), batch)
        tokens_S = trained_tokens(batch)
        every = 2 if self.baseline else 1
        own = Answers(policy_S[::every], tokens_S[::every], reference_S[::every])
        other = Answers(policy_S[1::2], tokens_S[1::2], reference_S[1::2])
        z = divergence(other) if self.baseline else torch.zeros((), device=policy_S.device)
        losses_N = answer_losses(own, good_N, z, self.objective)
        return Loss(losses_N.sum(), batch.num_targets, answer_metrics(own, good_N, z, self.objective))

    def _whole(self, batch: BranchedBatch) -> BranchedBatch:
        if not self.baseline:
            return batch
        return JudgedBatch(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)})
