"""Ghost Attention: where the instruction stands when answers are sampled and when they are learned, and what is trained."""

import pytest

from luyen.core.errors import DataError
from luyen.core.records import Message
from luyen.synthesis.ghost_attention import asked, last_turn_alone, learned
from luyen.tokenizer.chat import render_batch
from luyen.tokenizer.train import TokenizerConfig, train

TALK = (
    Message("system", "Be kind."), Message("user", "Hello."), Message("assistant", "Ahoy."), Message("user", "More?"),
    Message("assistant", "Aye, more."),
)  # fmt: skip


def test_the_instruction_is_before_every_question_when_answers_are_sampled() -> None:
    texts = [turn.content for turn in asked(TALK[:4], "Talk like a sailor.")]
    assert texts == ["Be kind.", "Talk like a sailor.\n\nHello.", "Ahoy.", "Talk like a sailor.\n\nMore?"]


def test_it_is_before_the_first_one_alone_when_they_are_learned() -> None:
    conversation = learned(TALK, "Talk like a sailor.")
    assert conversation.messages == (TALK[0], Message("user", "Talk like a sailor.\n\nHello."), *TALK[2:])


def test_only_the_last_answer_is_trained() -> None:
    tokenizer = train(["Hello. Ahoy. More? Aye, more. Be kind."] * 3, TokenizerConfig(vocab_size=300))
    (whole,) = render_batch(tokenizer, [TALK])
    last = last_turn_alone(whole)
    assert last.ids == whole.ids and 0 < sum(last.trained) < sum(whole.trained)
    words = tokenizer.decode([token for token, trained in zip(last.ids, last.trained, strict=True) if trained])
    assert "Aye, more." in words and "Ahoy" not in words
    first = render_batch(tokenizer, [TALK[:3]])[0]
    assert last_turn_alone(first) == first, "a conversation of one answer stays as it is"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="does not end with an answer"):
        learned(TALK[:4], "Talk like a sailor.")
    with pytest.raises(DataError, match="instruction is empty"):
        asked(TALK, " ")
    with pytest.raises(DataError, match="nobody asks"):
        asked(TALK[:1], "Talk like a sailor.")
