"""Texts as they stream: characters that are split over tokens, spaces at a seam, the beginning token, equal texts."""

import json
from collections.abc import Iterator

import pytest
import torch

from luyen.core.errors import DataError
from luyen.core.records import Message
from luyen.inference.chat import ChatSession
from luyen.inference.config import SamplingConfig
from luyen.inference.continuation import Continuation
from luyen.inference.generate import generate
from luyen.inference.pieces import text_pieces
from luyen.models.config import TransformerConfig
from luyen.models.llama2c import build_tokenizer
from luyen.models.transformer import Transformer
from luyen.tokenizer.folder import Facts
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

TEXTS = ["The function dumps turns an object into a string.", "Xin chào thế giới. Привет, мир!"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, TokenizerConfig(vocab_size=330))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2,
        context_length=64, init_std=0.5,
    )  # fmt: skip
    return Transformer(config)


def test_half_a_character_is_never_shown(tokenizer: Tokenizer) -> None:
    text = "Xin chào 🎉 мир ∂"
    ids = tokenizer.encode(text)
    written: list[int] = []
    pieces = list(text_pieces(iter(ids), tokenizer, written))
    assert "".join(pieces) == text and written == ids
    assert len(pieces) < len(ids) and not any("\ufffd" in piece for piece in pieces)
    half = list(text_pieces(iter(tokenizer.encode("🎉")[:2]), tokenizer, []))
    assert set("".join(half)) == {"\ufffd"}, "what never becomes a character is shown at the end"


def test_a_space_at_the_seam_is_kept_where_a_decoder_drops_a_leading_one() -> None:
    pieces = [(name.encode(), 0.0) for name in ("<unk>", "<s>", "</s>")] + [(b"", 0.0)] * 256
    pieces += [(char.encode(), 0.0) for char in " ab"]
    llama = build_tokenizer(pieces)
    tokenizer = Tokenizer(json.loads(llama.to_str()), Facts())
    before, after = tokenizer.encode("a"), [llama.token_to_id("▁"), llama.token_to_id("b")]
    assert "".join(text_pieces(iter(after), tokenizer, [])) == "b"
    assert "".join(text_pieces(iter(after), tokenizer, [], before)) == " b"


def test_a_text_goes_on_after_the_beginning_token_as_in_pretraining(model: Transformer, tokenizer: Tokenizer) -> None:
    sampling = SamplingConfig(max_new_tokens=12)
    assert tokenizer.bos_id is not None
    prompt = [tokenizer.bos_id, *tokenizer.encode("The function")]
    whole = tokenizer.decode([*prompt, *generate(model, [prompt], sampling, tokenizer.stop_ids)[0].ids])
    session = Continuation(model, tokenizer, sampling)
    assert "The function" + "".join(session.write("The function")) == whole
    nothing = generate(model, [[tokenizer.bos_id]], sampling, tokenizer.stop_ids)[0].ids
    assert "".join(session.write("")) == tokenizer.decode(nothing)


def test_equal_texts_are_drawn_anew_and_in_the_same_order_every_time(model: Transformer, tokenizer: Tokenizer) -> None:
    sampling = SamplingConfig(max_new_tokens=12, temperature=1)

    def three() -> list[str]:
        session = Continuation(model, tokenizer, sampling)
        return ["".join(session.write("The")) for _ in range(3)]

    assert three() == three() and len(set(three())) == 3


def test_nothing_needs_a_beginning_token(model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "bos_id", None)
    session = Continuation(model, tokenizer, SamplingConfig(max_new_tokens=3))
    with pytest.raises(DataError, match="no token that begins a text.*Type how it begins"):
        session.write("")
    assert "".join(session.write("The"))
    with pytest.raises(DataError, match="leaves no room"):
        session.write("The function " * 30)


def test_a_stopped_answer_stays_said(model: Transformer, tokenizer: Tokenizer) -> None:
    session = ChatSession(model, tokenizer, SamplingConfig(max_new_tokens=20))
    pieces: Iterator[str] = session.ask("What?")
    said = next(pieces) + next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert session.messages == [Message("user", "What?"), Message("assistant", said)]
