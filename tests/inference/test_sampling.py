"""Filters of the next token's distribution, with numbers worked out by hand."""

import pytest
import torch

from luyen.core import config as configs
from luyen.core.errors import ConfigError
from luyen.inference.config import SamplingConfig
from luyen.inference.sampling import choose, draw, nucleus, penalise, probabilities

# Probabilities 0.5, 0.3, 0.15, 0.05 of the ids 2, 0, 3, 1.
CHANCES = torch.tensor([[0.3, 0.05, 0.5, 0.15]])


def filtered(temperature: float = 1.0, **fields) -> list[float]:
    config = SamplingConfig(temperature=temperature, **fields)
    return [round(value, 5) for value in probabilities(CHANCES.log(), config)[0].tolist()]


def test_temperature_is_a_power_of_the_odds() -> None:
    # Squares: 0.09, 0.0025, 0.25, 0.0225, sum 0.365.
    assert filtered(temperature=0.5) == [0.24658, 0.00685, 0.68493, 0.06164]


def test_top_k() -> None:
    assert filtered(top_k=2) == [0.375, 0, 0.625, 0]
    assert filtered(top_k=9) == filtered() == [0.3, 0.05, 0.5, 0.15]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.4, [0, 0, 1, 0]), (0.51, [0.375, 0, 0.625, 0]), (0.79, [0.375, 0, 0.625, 0]), (0.9, [0.31579, 0, 0.52632, 0.15789])],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, expected) -> None:
    assert filtered(top_p=top_p) == expected


def test_min_p_is_a_share_of_the_largest() -> None:
    assert filtered(min_p=0.2) == [0.31579, 0, 0.52632, 0.15789]  # 0.2 * 0.5 = 0.1
    assert filtered(min_p=0.31) == [0.375, 0, 0.625, 0]


def test_repetition_penalty_lowers_both_signs() -> None:
    seen = torch.tensor([[True, True, False, False]])
    assert penalise(torch.tensor([[2.0, -2.0, 2.0, -2.0]]), seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0]]
    config = SamplingConfig(repetition_penalty=4.0)
    assert choose(torch.tensor([[2.0, -2.0, 1.0, -2.0]]), config, None, seen).tolist() == [2]


def test_draw_inverts_the_cumulative_distribution() -> None:
    uniform = torch.tensor([0.0, 0.299, 0.301, 0.349, 0.351, 0.849, 0.851, 0.99999])
    assert draw(CHANCES.expand(8, 4), uniform).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_draw_never_takes_an_impossible_token() -> None:
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    uniform = torch.tensor([0.0, 0.5, 0.4999999, 1 - 2**-53], dtype=torch.float64)
    assert draw(chances.expand(4, 5), uniform).tolist() == [1, 3, 1, 3]


def test_draws_follow_the_distribution() -> None:
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    tokens = choose(CHANCES.log().expand(20000, 4), SamplingConfig(temperature=1.0), uniform, None)
    shares = torch.bincount(tokens, minlength=4) / 20000
    torch.testing.assert_close(shares, CHANCES[0], rtol=0, atol=0.015)  # more than 4 standard deviations


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 2}, {"top_k": -1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        configs.load(SamplingConfig, wrong)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("steps", [3, 20, 10_000], ids=["many ties", "some", "few"])
def test_top_p_keeps_the_tokens_that_a_stable_sort_of_all_puts_first(share, steps) -> None:
    generator = torch.Generator().manual_seed(steps)
    probability = (torch.randint(0, steps, (40, 300), generator=generator) * (4 / steps)).softmax(-1)
    ordered, order = probability.sort(descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, ordered.cumsum(-1) - ordered < share)
    assert torch.equal(nucleus(probability, share), kept)
    assert not kept.all() or share > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_first_of_equal_scores_is_taken(dtype) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -2.0, -0.5, -0.5]], dtype=dtype)
    assert choose(logits, SamplingConfig(), None, None).tolist() == [1, 0, 2]
