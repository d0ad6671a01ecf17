"""The page of a learning-rate test: its words, and how many of its steps it shows."""

from __future__ import annotations

from typing import Any

from luyen.report.rates import render

VERDICT = "Take learning rate 0.001, where the loss falls fastest: it is lowest at 0.01 and diverges at 0.1."


def found(count: int, **changes: Any) -> dict[str, Any]:
    rates = [1e-4 * 1.1**place for place in range(count)]
    losses = [8.0 - 4 * place / count for place in range(count)]
    return {
        "recipe": "toy", "stage": "base", "optimizer": "adamw", "taken": 0.001, "settings": "base.train.optimizer.learning_rate=0.001",
        "verdict": VERDICT, "remarks": [], "rates": rates, "losses": losses, "averaged": losses, "suggestion": rates[count // 2],
        "lowest": rates[-1], "broken": None, **changes,
    }  # fmt: skip


def test_the_caption_is_sentences_and_the_table_says_how_many_steps_it_has() -> None:
    page = render(found(80))
    assert f"80 rates from 0.0001 to 0.19. {VERDICT}" in page
    assert "One step in 2; all are in rates.json" in page and "Every step" in render(found(40))


def test_what_is_not_drawn_is_counted_in_words_that_agree() -> None:
    losses = found(20)["losses"]
    assert "1 loss far above the first is not drawn." in render(found(20, losses=[*losses[:-1], 90.0]))
    assert "2 losses far above the first are not drawn." in render(found(20, losses=[*losses[:-2], 90.0, 90.0]))
    assert "not drawn" not in render(found(20))
