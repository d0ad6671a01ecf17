"""The ranking loss by hand: GROUND-TRUTH figures of TRL's formula with Llama 2's margins, centring, and the safety label."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luyen.data import convert
from luyen.objectives.reward import GRADES, MARGINS, SAFETY, ranking_losses, safety_losses


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("margin", "loss"),
    [(0, 0.313262), (1 / 3, 0.414370), (2 / 3, 0.540306), (1, 0.693147), (2, 1.313262), (3, 2.126928)],
)
def test_a_difference_of_one_with_each_margin(margin: float, loss: float) -> None:
    found_P = ranking_losses(numbers(1.5), numbers(0.5), numbers(margin))
    assert found_P.tolist() == pytest.approx([loss], abs=1e-6)


def test_the_margins_are_those_of_table_27() -> None:
    assert [MARGINS["small"][grade] for grade in GRADES] == [1, 2 / 3, 1 / 3, 0]
    assert [MARGINS["large"][grade] for grade in GRADES] == [3, 2, 1, 0]


def test_the_words_are_those_of_the_files() -> None:
    assert GRADES == convert.GRADES and tuple(SAFETY) == convert.SAFETY


def test_equal_rewards_cost_ln_2_and_centring_the_square_of_the_sum() -> None:
    assert ranking_losses(numbers(0), numbers(0)).item() == pytest.approx(math.log(2), abs=1e-12)
    plain_P, centred_P = (ranking_losses(numbers(1, 2), numbers(0, 1), centring=weight) for weight in (0.0, 0.01))
    torch.testing.assert_close(centred_P - plain_P, numbers(0.01, 0.09))


def test_a_margin_asks_for_more_and_never_for_less() -> None:
    chosen_P, rejected_P = numbers(5, 5).requires_grad_(), numbers(0, 0)
    slope_P = torch.autograd.grad(ranking_losses(chosen_P, rejected_P, numbers(0, 3)).sum(), chosen_P)[0]
    torch.testing.assert_close(slope_P, -torch.sigmoid(numbers(-5, -2)))


def test_extreme_rewards_stay_finite() -> None:
    chosen_P = torch.tensor([1e4, -1e4], requires_grad=True)
    losses_P = ranking_losses(chosen_P, torch.zeros(2))
    losses_P.sum().backward()
    assert losses_P.tolist() == [0, 1e4] and chosen_P.grad is not None and chosen_P.grad.tolist() == [0, -1]


def test_safety_is_cross_entropy_where_somebody_said() -> None:
    losses_S = safety_losses(numbers(1, 1, 1), torch.tensor([1, 0, -1]))
    torch.testing.assert_close(losses_S, numbers(-math.log(1 / (1 + math.exp(-1))), -math.log(1 - 1 / (1 + math.exp(-1))), 0))
