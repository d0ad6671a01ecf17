"""Log-probabilities of answers: the same whether their prompt is shared or written out, and those of the logits."""

from __future__ import annotations

import numpy as np
import torch

from luyen.algorithms.sequences import by_sequence, token_log_probabilities, trained_tokens
from luyen.data.branches import Group, collate_groups
from luyen.data.samples import NOT_TRAINED, Sample
from tests.models.toys import toy


def sequence(ids: list[int], prompt: int) -> Sample:
    return Sample("s", np.array(ids[:-1], np.int32), np.array([NOT_TRAINED] * (prompt - 1) + ids[prompt:], np.int32))


GROUPS = [
    Group("a", (sequence([11, 12, 13, 14, 21, 22, 23], 4), sequence([11, 12, 13, 14, 31, 32], 4))),
    Group("b", (sequence([5, 6, 7, 8, 9], 2), sequence([5, 6, 1, 2, 3, 4], 2), sequence([5, 6, 9, 9], 2))),
]


def test_sharing_the_prompt_changes_nothing() -> None:
    model = toy(num_kv_heads=2).double()
    shared, whole = collate_groups(GROUPS), collate_groups(GROUPS, share=False)
    assert len(shared.tokens_T) < len(whole.tokens_T)
    ours_S, theirs_S = (by_sequence(token_log_probabilities(model, batch), batch) for batch in (shared, whole))
    torch.testing.assert_close(ours_S, theirs_S)
    weight_S = torch.arange(1.0, 6.0, dtype=torch.float64)
    parameters = list(model.parameters())
    for own, other in zip(
        torch.autograd.grad(ours_S @ weight_S, parameters), torch.autograd.grad(theirs_S @ weight_S, parameters), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_they_are_those_of_the_logits() -> None:
    model, batch = toy().double(), collate_groups(GROUPS)
    found_S = by_sequence(token_log_probabilities(model, batch), batch)
    expected = []
    for group in GROUPS:
        for item in group.sequences:
            logits_TV = model.logits(model(torch.from_numpy(item.tokens.astype(np.int64))[None]))[0].log_softmax(-1)
            expected.append(sum(logits_TV[place, token] for place, token in enumerate(item.targets.tolist()) if token != NOT_TRAINED))
    torch.testing.assert_close(found_S, torch.stack(expected))
    assert trained_tokens(batch).tolist() == [3, 2, 3, 4, 2]
