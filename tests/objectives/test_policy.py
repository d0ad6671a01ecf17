"""Advantages, clipped losses and divergences: published vectors, numbers by hand, and a reference in float64 that goes step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luyen.objectives import policy


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_generalized_advantages_are_the_published_vector() -> None:
    rewards = numbers(0, 0, 0, 1)[None]
    advantages, returns = policy.generalized_advantages(rewards, rewards, gamma=0.9, lam=0.95)
    torch.testing.assert_close(advantages[0], numbers(0.6579225, 0.7695, 0.9, 0))
    torch.testing.assert_close(returns[0], numbers(0.6579225, 0.7695, 0.9, 1))


def test_rewards_hold_the_divergence_and_the_score_at_the_end() -> None:
    kl = policy.kl_estimate(numbers(0.1, 0.2, 0.3), numbers(0.2, 0.3, 0.4))
    torch.testing.assert_close(policy.shaped_rewards(numbers(1), kl, [3], 0.5)[0], numbers(0.05, 0.05, 1.05))
    two = policy.shaped_rewards(numbers(1, 2), numbers(0.5, 0.25, 1), [1, 2], 1.0)
    torch.testing.assert_close(two, torch.stack([numbers(0.5, 0), numbers(-0.25, 1)]))


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.2), ("k2", 0.02), ("k3", 0.018731)])
def test_estimates_of_the_divergence(kind: policy.KLEstimator, expected: float) -> None:
    assert float(policy.kl_estimate(numbers(0.0), numbers(-0.2), kind)) == pytest.approx(expected, abs=1e-6)


def test_the_estimates_mean_the_divergence() -> None:
    own, other = numbers(0.5, 0.3, 0.2), numbers(0.4, 0.4, 0.2)
    exact = float((own * (own / other).log()).sum())
    for kind in ("k1", "k3"):
        assert float((own * policy.kl_estimate(own.log(), other.log(), kind)).sum()) == pytest.approx(exact)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "held"), [(1.5, 1, -1.2, 1), (1.5, -1, 1.5, 0), (0.5, 1, -0.5, 0), (0.5, -1, 0.8, 1)]
)
def test_the_clipped_loss_by_hand(ratio: float, advantage: float, expected: float, held: int) -> None:
    loss = policy.clipped_policy_loss(numbers(math.log(ratio)), numbers(0), numbers(advantage))
    assert (float(loss.total), int(loss.clipped)) == (pytest.approx(expected), held)


def test_where_the_clip_holds_nothing_is_learned() -> None:
    own = numbers(math.log(1.5), math.log(1.5), 0).requires_grad_()
    loss = policy.clipped_policy_loss(own, numbers(0, 0, 0), numbers(1, -1, 1), weights_K=numbers(1, 1, 2))
    (slope,) = torch.autograd.grad(loss.total, own)
    torch.testing.assert_close(slope, numbers(0, 1.5, -2))


def test_the_value_loss_by_hand() -> None:
    loss = policy.clipped_value_loss(numbers(1, 0.5, 0), numbers(0, 0, 0), numbers(1, 1, 1), 0.2)
    assert float(loss.total) == pytest.approx(0.5 * (0.8**2 + 0.8**2 + 1)) and int(loss.clipped) == 2


def test_whitening() -> None:
    values = numbers(1, 2, 3, 100)
    mask = torch.tensor([True, True, True, False])
    torch.testing.assert_close(policy.whitened(values, mask), numbers(-1, 0, 1, 0), atol=1e-7, rtol=0)
    torch.testing.assert_close(policy.whitened(values[:3], shift_mean=False), numbers(1, 2, 3), atol=1e-7, rtol=0)
    assert torch.isfinite(policy.whitened(numbers(3))).all(), "one number has no deviation"


def test_advantages_of_a_group() -> None:
    rewards = torch.stack([numbers(0, 1, 1, 2), numbers(5, 5, 5, 5)])
    deviation = math.sqrt(2 / 3) + 1e-4
    torch.testing.assert_close(policy.group_advantages(rewards)[0], numbers(-1, 0, 0, 1) / deviation)
    torch.testing.assert_close(policy.group_advantages(rewards, divide=False), torch.stack([numbers(-1, 0, 0, 1), numbers(0, 0, 0, 0)]))
    torch.testing.assert_close(policy.leave_one_out(rewards)[0], numbers(-4 / 3, 0, 0, 4 / 3))
    assert not policy.group_advantages(rewards)[1].any() and not policy.leave_one_out(rewards)[1].any()


def test_the_coefficient_follows_its_target() -> None:
    assert policy.adapted_coefficient(0.1, 12.0, 6.0, 100, 1000) == pytest.approx(0.1 * 1.02)
    assert policy.adapted_coefficient(0.1, 0.0, 6.0, 100, 1000) == pytest.approx(0.1 * 0.98)
    assert policy.adapted_coefficient(0.1, 6.6, 6.0, 100, 1000) == pytest.approx(0.1 * 1.01)


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2, 3, 4])
    assert policy.explained_variance(returns, returns) == 1
    assert policy.explained_variance(torch.zeros(4), returns) == 0
    assert policy.explained_variance(-returns, returns) == -3
    assert policy.explained_variance(returns, torch.ones(4)) == 0


def reference(
    own: list[list[float]], old: list[list[float]], other: list[list[float]], values: list[list[float]], scores: list[float]
) -> tuple[list[float], list[float], float, float]:
    """Advantages, returns and both losses of answers of any lengths in plain Python: beta 0.05, gamma 0.97, lambda 0.9, clip 0.2."""
    advantages, returns = [], []
    for answer in range(len(scores)):
        length = len(old[answer])
        rewards = [-0.05 * (old[answer][t] - other[answer][t]) for t in range(length)]
        rewards[-1] += scores[answer]
        for start in range(length):
            total = 0.0
            for t in range(start, length):
                following = values[answer][t + 1] if t + 1 < length else 0.0
                total += (0.97 * 0.9) ** (t - start) * (rewards[t] + 0.97 * following - values[answer][t])
            advantages.append(total)
            returns.append(total + values[answer][start])
    mean = sum(advantages) / len(advantages)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantages) / (len(advantages) - 1) + 1e-8)
    white = [(a - mean) / deviation for a in advantages]
    flat_own, flat_old = [x for row in own for x in row], [x for row in old for x in row]
    ratios = [math.exp(a - b) for a, b in zip(flat_own, flat_old, strict=True)]
    loss = sum(max(-a * r, -a * min(max(r, 0.8), 1.2)) for a, r in zip(white, ratios, strict=True))
    now = [v + 0.3 for row in values for v in row]
    near = [v + 0.2 for row in values for v in row]
    value = sum(0.5 * max((a - r) ** 2, (b - r) ** 2) for a, b, r in zip(now, near, returns, strict=True))
    return white, returns, loss, value


@pytest.mark.parametrize("seed", range(5))
def test_all_of_it_equals_a_reference_that_goes_step_by_step(seed: int) -> None:
    torch.manual_seed(seed)
    lengths = [3, 1, 5, 2]
    rows = [torch.randn(4, length, dtype=torch.float64) for length in lengths]
    own, old, other, values = (torch.cat([row[part] for row in rows]) for part in range(4))
    scores = torch.randn(4, dtype=torch.float64)
    white, returns, loss, value = reference(*([row[part].tolist() for row in rows] for part in range(4)), scores.tolist())  # type: ignore[arg-type]
    rewards_SL = policy.shaped_rewards(scores, policy.kl_estimate(old, other), lengths, 0.05)
    advantages_SL, returns_SL = policy.generalized_advantages(rewards_SL, policy.padded(values, lengths), 0.97, 0.9)
    advantages_K, returns_K = (policy.whitened(policy.flat(advantages_SL, lengths)), policy.flat(returns_SL, lengths))
    torch.testing.assert_close(advantages_K, numbers(*white))
    torch.testing.assert_close(returns_K, numbers(*returns))
    assert float(policy.clipped_policy_loss(own, old, advantages_K).total) == pytest.approx(loss)
    assert float(policy.clipped_value_loss(values + 0.3, values, returns_K).total) == pytest.approx(value)
