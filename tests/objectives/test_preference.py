"""The losses of preferences: published vectors, values derived by hand, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luyen.objectives.preference import (
    Answers,
    PreferenceLoss,
    answer_losses,
    answer_metrics,
    divergence,
    log_odds,
    pair_losses,
    pair_metrics,
)

LN2 = math.log(2)


def answers(policy: list[float], reference: list[float] | None, tokens: list[int] | None = None) -> Answers:
    known = None if reference is None else torch.tensor(reference, dtype=torch.float64)
    return Answers(torch.tensor(policy, dtype=torch.float64), torch.tensor(tokens or [1] * len(policy), dtype=torch.float64), known)


# torchtune tests/torchtune/rlhf/loss/test_dpo_loss.py: differences 0, 10, 20.
CHOSEN, REJECTED = ([-0.5, -10.0, -1.0], [-0.5, -10.1, -0.1]), ([-0.1, -30.0, -21.0], [-0.1, -20.1, -0.1])
VECTORS = {
    "sigmoid": (PreferenceLoss(), [0.693147, 0.313262, 0.126928]),
    "hinge": (PreferenceLoss("hinge"), [1.0, 0.0, 0.0]),
    "ipo": (PreferenceLoss("ipo"), [25.0, 25.0, 225.0]),
    "robust": (PreferenceLoss("robust", label_smoothing=0.1), [0.693147, 0.188262, -0.123072]),
    "cdpo": (PreferenceLoss("cdpo", label_smoothing=0.1), [0.693147, 0.413262, 0.326928]),
}


def losses(loss: PreferenceLoss, tokens: int = 1) -> Tensor:
    counts = [tokens] * 3
    return pair_losses(answers(*CHOSEN, counts), answers(*REJECTED, counts), loss)


@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(name: str) -> None:
    loss, expected = VECTORS[name]
    torch.testing.assert_close(losses(loss), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_ipo_is_of_means_over_tokens() -> None:
    torch.testing.assert_close(losses(PreferenceLoss("ipo"), 10), torch.tensor([25.0, 16.0, 9.0], dtype=torch.float64))


def test_length_normalised_dpo_is_of_means_too() -> None:
    """By hand: beta 0.1, differences 0, 1, 2 by token, so -log s(0), -log s(0.1), -log s(0.2)."""
    expected = [LN2, math.log1p(math.exp(-0.1)), math.log1p(math.exp(-0.2))]
    torch.testing.assert_close(losses(PreferenceLoss(length_normalised=True), 10), torch.tensor(expected, dtype=torch.float64))


def test_the_first_step_is_exactly_ln_2() -> None:
    same = torch.tensor([-12.3, -4.5])
    side = Answers(same, torch.ones(2), same.clone())
    assert pair_losses(side, side, PreferenceLoss()).tolist() == [0.6931471824645996] * 2


def test_orpo_by_hand() -> None:
    """Means -0.5 and -1: log odds 0.974077, -0.1 log s of it 0.032030, and 0.5 for the chosen answer itself."""
    chosen, rejected = answers([-1.0], None, [2]), answers([-4.0], None, [4])
    torch.testing.assert_close(
        log_odds(chosen.ratios(True)) - log_odds(rejected.ratios(True)), torch.tensor([0.974077]).double(), atol=1e-6, rtol=0
    )
    found = pair_losses(chosen, rejected, PreferenceLoss("orpo"))
    torch.testing.assert_close(found, torch.tensor([0.5 + 0.032030], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [-1e-6, -0.1, -LN2, -3.0, -80.0])
def test_log_odds_and_their_slope(value: float) -> None:
    given = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    found = log_odds(given)
    torch.testing.assert_close(found.detach(), torch.tensor([value - math.log(-math.expm1(value))], dtype=torch.float64))
    (slope,) = torch.autograd.grad(found.sum(), given)  # d/dx log(p / (1 - p)) = 1 / (1 - p)
    torch.testing.assert_close(slope, torch.tensor([-1 / math.expm1(value)], dtype=torch.float64))


def test_a_certain_answer_has_finite_odds() -> None:
    given = torch.zeros(1, requires_grad=True)
    found = log_odds(given)
    found.sum().backward()
    assert math.isfinite(found.item()) and given.grad is not None and float(given.grad) == 0


def test_simpo_by_hand() -> None:
    """beta 2, gamma 0.5, means -0.5 and -1: -log s(2 x 0.5 - 0.5) = log(1 + e^-0.5)."""
    found = pair_losses(answers([-1.0], None, [2]), answers([-4.0], None, [4]), PreferenceLoss("simpo", beta=2.0, gamma=0.5))
    torch.testing.assert_close(found, torch.tensor([math.log1p(math.exp(-0.5))], dtype=torch.float64))


def test_fine_tuning_on_the_chosen_answer_is_added_by_token() -> None:
    plain, more = losses(PreferenceLoss(), 2), losses(PreferenceLoss(sft_weight=0.5), 2)
    torch.testing.assert_close(more - plain, torch.tensor([0.125, 2.5, 0.25], dtype=torch.float64))


@pytest.mark.parametrize(("kl", "good", "bad"), [(0.0, 0.475021, 0.524979), (0.5, 0.487503, 0.512497)])
def test_kto_vectors(kl: float, good: float, bad: float) -> None:
    given = answers([-1.0, -1.0], [-2.0, -2.0])
    found = answer_losses(given, torch.tensor([True, False]), kl, PreferenceLoss("kto"))
    torch.testing.assert_close(found, torch.tensor([good, bad], dtype=torch.float64), atol=1e-6, rtol=0)
    weighted = answer_losses(given, torch.tensor([True, False]), kl, PreferenceLoss("kto", desirable_weight=2, undesirable_weight=3))
    torch.testing.assert_close(weighted, found * torch.tensor([2.0, 3.0]))


def test_apo_zero_has_no_baseline() -> None:
    given, good = answers([-1.0, -1.0], [-2.0, -2.0]), torch.tensor([True, False])
    found = answer_losses(given, good, 7.0, PreferenceLoss("apo_zero_unpaired"))
    torch.testing.assert_close(found, answer_losses(given, good, 0.0, PreferenceLoss("kto")))


def test_the_baseline_is_a_mean_never_below_zero_and_has_no_gradient() -> None:
    policy = torch.tensor([-1.0, -3.0], requires_grad=True)
    assert float(divergence(Answers(policy, torch.ones(2), torch.tensor([-3.0, -4.0])))) == 1.5
    below = divergence(Answers(policy, torch.ones(2), torch.tensor([0.0, 0.0])))
    assert float(below) == 0 and not below.requires_grad


def test_what_is_told_of_pairs() -> None:
    chosen, rejected = answers(*CHOSEN, [2, 2, 2]), answers(*REJECTED, [2, 2, 2])
    found = {name: float(total) / count for name, (total, count) in pair_metrics(chosen, rejected, PreferenceLoss()).items()}
    assert found == pytest.approx(
        {
            "accuracy": 2 / 3, "margin": 1.0, "chosen_reward": -0.1 * 0.8 / 3, "rejected_reward": -0.1 * 30.8 / 3,
            "chosen_log_probability": -11.5 / 3, "rejected_log_probability": -51.1 / 3, "kl": 31.6 / 6, "chosen_drift": -0.8 / 6,
        }
    )  # fmt: skip


def test_what_is_told_of_judged_answers() -> None:
    given = answers([-1.0, -2.0, -6.0], [-2.0, -1.0, -2.0], [2, 2, 2])
    metrics = answer_metrics(given, torch.tensor([True, True, False]), torch.tensor(0.5), PreferenceLoss("kto"))
    found = {name: float(total) / count for name, (total, count) in metrics.items()}
    assert found == pytest.approx(
        {
            "good": 2 / 3, "baseline": 0.5, "chosen_reward": 0.0, "rejected_reward": -0.4, "chosen_log_probability": -1.5,
            "rejected_log_probability": -6.0, "kl": 4 / 3, "chosen_drift": 0.0,
        }
    )  # fmt: skip
