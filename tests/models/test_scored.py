"""A decoder with a number for each token."""

from __future__ import annotations

import torch

from luyen.models.scored import ScoredDecoder, without_words
from tests.models.toys import toy


def test_every_answer_is_worth_the_same_at_first() -> None:
    model = ScoredDecoder(toy())
    hidden = model(torch.tensor([[5, 6, 7]]))
    assert torch.equal(model.scores(hidden), torch.zeros(1, 3, 1))


def test_scores_are_exact_under_autocast() -> None:
    model = ScoredDecoder(toy(), outputs=2)
    torch.nn.init.normal_(model.score.weight)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(torch.tensor([[5, 6, 7]]))
        scores = model.scores(hidden)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, hidden.float() @ model.score.weight.T)


def test_the_head_for_words_goes_and_hidden_states_stay() -> None:
    decoder = toy(tied=False)
    tokens = torch.tensor([[5, 6, 7]])
    expected = decoder(tokens)
    stripped = without_words(decoder)
    assert torch.equal(stripped(tokens), expected)
    assert not any("lm_head" in name for name in stripped.state_dict()) and stripped.config.tied
