"""On planted Bradley-Terry data DPO ends at the policy that its paper derives: pi ~ ref exp(r / beta)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from luyen.algorithms.dpo import DPO
from luyen.algorithms.reference import log_probabilities
from luyen.data.branches import Group, collate_groups
from luyen.data.pairs import GroupStream
from luyen.engine.trainer import fit
from luyen.objectives.preference import PreferenceLoss
from tests.algorithms.preference_toys import answer, frozen
from tests.training_toys import toy_config, toy_model

REWARDS = {10: -1.0, 11: -0.3, 12: 0.2, 13: 1.1}
"""Of each answer, one token, to the prompt."""
PROMPT, BETA, EACH = [1, 2], 0.5, 20


def comparisons() -> list[Group]:
    """`EACH` of every two answers, won as often as Bradley and Terry say of these rewards, to the nearest whole number."""
    groups = []
    for first, second in combinations(REWARDS, 2):
        wins = round(EACH * torch.sigmoid(torch.tensor(REWARDS[first] - REWARDS[second])).item())
        for number in range(EACH):
            chosen, rejected = (first, second) if number < wins else (second, first)
            groups.append(Group(f"{first}-{second}-{number}", (answer(PROMPT, [chosen]), answer(PROMPT, [rejected]))))
    return groups


def implied(algorithm: DPO) -> torch.Tensor:
    """beta log(pi / ref) of every answer less their mean: the reward that the policy stands for."""
    batch = collate_groups([Group("all", tuple(answer(PROMPT, [token]) for token in REWARDS))])
    with torch.no_grad():
        ratio = log_probabilities(algorithm.model, batch) - algorithm.reference(batch)  # type: ignore[misc]
    return BETA * (ratio - ratio.mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_policy_stands_for_the_planted_rewards(seed: int, tmp_path: Path) -> None:
    model, groups = toy_model(seed), comparisons()
    stream = GroupStream(groups, size=len(groups), seed=seed)
    algorithm = DPO(model, stream, frozen(model), PreferenceLoss(beta=BETA))
    optimizer = {"learning_rate": 1e-2, "weight_decay": 0.0}
    fit(algorithm, toy_config(steps=150, optimizer=optimizer, evaluate_every=0), tmp_path, seed=seed)
    planted = torch.tensor(list(REWARDS.values()))
    assert float((implied(algorithm) - (planted - planted.mean())).abs().max()) < 0.1  # a twentieth of a win is up to 0.13 for one pair


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ipo_goes_so_far_and_no_farther(seed: int, tmp_path: Path) -> None:
    """With one answer that always wins DPO would part the two without end; IPO stops at 1 / (2 beta) by token, here 2."""
    model = toy_model(seed)
    stream = GroupStream([Group("one", (answer(PROMPT, [10]), answer(PROMPT, [11])))], size=1, seed=seed)
    algorithm = DPO(model, stream, frozen(model), PreferenceLoss("ipo", beta=0.25))
    fit(algorithm, toy_config(steps=80, optimizer={"learning_rate": 1e-2, "weight_decay": 0.0}, evaluate_every=0), tmp_path, seed=seed)
    with torch.no_grad():
        chosen, rejected = algorithm.answers(stream.batch([0]))
    assert float(chosen.ratios(True) - rejected.ratios(True)) == pytest.approx(2.0, abs=0.05)
