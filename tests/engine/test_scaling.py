"""Chinchilla's figures: the two fits, the best size for a budget, the words."""

import pytest

from luyen.engine.scaling import BESIROGLU, Law, advice, amount

CHINCHILLA = 5.76e23
"""Operations of Gopher and Chinchilla (Hoffmann et al., 2022, section 4.1)."""

HOFFMANN = Law(1.69, 406.4, 410.7, 0.34, 0.28)
"""As printed in 2022 (equation 10), rounded. The package has the replication alone, for what `test_the_first_fit_does_not` shows."""


def test_the_replication_agrees_with_twenty_tokens_per_parameter() -> None:
    size, tokens = BESIROGLU.best(CHINCHILLA)
    assert size * tokens * 6 == pytest.approx(CHINCHILLA)
    assert tokens / size == pytest.approx(18, abs=1)  # and with Chinchilla: 70 billion, 1.4 trillion
    assert size == pytest.approx(70e9, rel=0.05) and tokens == pytest.approx(1.4e12, rel=0.06)


def test_the_first_fit_does_not() -> None:
    size, tokens = HOFFMANN.best(CHINCHILLA)
    assert tokens / size == pytest.approx(93, abs=2)


@pytest.mark.parametrize("law", [BESIROGLU, HOFFMANN])
def test_the_best_is_a_minimum(law: object) -> None:
    size, tokens = law.best(1e21)  # type: ignore[attr-defined]
    least = law.loss(size, tokens)  # type: ignore[attr-defined]
    for factor in (0.8, 0.95, 1.05, 1.25):
        assert law.loss(size * factor, tokens / factor) > least  # type: ignore[attr-defined]


def test_the_loss_by_hand() -> None:
    assert BESIROGLU.loss(1.0, 1.0) == pytest.approx(1.8172 + 482.01 + 2085.43)
    assert BESIROGLU.loss(1e9, 20e9) == pytest.approx(1.8172 + 482.01 / 1350.35 + 2085.43 / 5855.4, rel=1e-3)


def test_words_for_too_few_enough_and_many_tokens() -> None:
    few, fits, many = (advice(1e9, ratio * 1e9) for ratio in (0.2, 20, 290))
    assert few.startswith("your run sees 0.2 tokens per parameter (200 million tokens, 1.0 billion parameters)")
    assert "a smaller model of 100 million parameters" in few and "train 100 times longer" in few
    assert "the size fits the tokens" in fits
    assert "a larger model of 3.8 billion parameters" in many and "cheaper to use" in many
    for text in (few, fits, many):
        assert "nats a token" in text


def test_small_models_are_outside_of_what_was_fitted() -> None:
    assert "70 million to 16 billion" in advice(2e6, 4e6) and "nats" not in advice(2e6, 4e6)


def test_repeated_text_is_told() -> None:
    assert "read about 3 times; up to 4" in advice(1e9, 3e9, unique=1e9)
    assert "read about 30 times; beyond 4 times repeats help less" in advice(1e9, 3e10, unique=1e9)
    assert "read about" not in advice(1e9, 1e9, unique=2e9)


def test_amounts_in_words() -> None:
    assert [amount(value) for value in (12, 4_600, 2e6, 460e6, 6.74e9, 2e12)] == [
        "12", "4.6 thousand", "2.0 million", "460 million", "6.7 billion", "2.0 trillion",
    ]  # fmt: skip
