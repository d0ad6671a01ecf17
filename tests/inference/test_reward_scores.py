"""Rewards of texts: read at the end of the answer, the same alone and in company, and refused where there is none."""

from __future__ import annotations

import pytest
import torch

from luyen.core.errors import DataError, ModelError
from luyen.core.records import Message
from luyen.inference import reward_model
from luyen.inference.reward_model import score_outputs, score_texts, through_end
from luyen.models.config import TransformerConfig
from luyen.models.scored import ScoredDecoder, without_words
from luyen.models.transformer import Transformer
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["What is one? It is one, and two is more."] * 3, TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def model() -> ScoredDecoder:
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, context_length=128)
    made = ScoredDecoder(without_words(Transformer(size)), 2)
    torch.nn.init.normal_(made.score.weight, std=0.2)
    return made


def talk(question: str, answer: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", answer)


TALKS = [
    talk("What is one?", "It is one."), talk("What is one?", "Two."), talk("What is two?", "More than one, and one is less than two."),
    talk("And?", "No."), talk("What is one?", "It is one, and that is all there is to say of it."),
]  # fmt: skip


def test_the_number_stands_at_the_end_of_the_turn(model: ScoredDecoder, tokenizer: Tokenizer) -> None:
    ids = through_end(render(tokenizer, TALKS[0]))
    assert ids[-1] in tokenizer.stop_ids
    expected = model.scores(model(torch.tensor([ids]))[0, -1])
    torch.testing.assert_close(score_outputs(model, tokenizer, TALKS[:1])[0], expected.detach())
    assert score_texts(model, tokenizer, TALKS[:1]) == [pytest.approx(float(expected[0].detach()), abs=1e-5)]


def test_white_space_of_the_template_behind_it_does_not_count(tokenizer: Tokenizer) -> None:
    chatml = tokenizer.with_tokens(["<|im_start|>", "<|im_end|>"], "chatml").with_template("chatml")
    rendered = render(chatml, TALKS[0])
    assert chatml.decode(rendered.ids, skip_control=False).endswith("<|im_end|>\n")
    assert chatml.decode(through_end(rendered), skip_control=False).endswith("It is one.<|im_end|>")


def test_company_and_order_change_nothing(model: ScoredDecoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = score_texts(model, tokenizer, TALKS)
    assert together == score_texts(model, tokenizer, TALKS)
    for number, single in enumerate(TALKS):
        assert score_texts(model, tokenizer, [single]) == [pytest.approx(together[number], abs=1e-6)]
    assert score_texts(model, tokenizer, TALKS[::-1])[::-1] == pytest.approx(together, abs=1e-6)
    monkeypatch.setattr(reward_model, "BATCH_TOKENS", 20)
    assert score_texts(model, tokenizer, TALKS) == pytest.approx(together, abs=1e-6)
    assert score_texts(model, tokenizer, []) == []


def test_what_cannot_be_scored_is_told(model: ScoredDecoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="conversation 1 does not end with an answer"):
        score_texts(model, tokenizer, [TALKS[0], TALKS[0][:1]])
    with pytest.raises(DataError, match="conversation 0 is too long.*at most 128"):
        score_texts(model, tokenizer, [talk("What?", "one two three " * 60)])
    other = train(["What is one? It is one, and two is more. Xin chào. Привет, мир, как дела?"] * 9, TokenizerConfig(vocab_size=330))
    with pytest.raises(ModelError, match="not this reward model's"):
        score_texts(model, other, TALKS)
