"""Bits per byte against a token-by-token sum, uniform models, windows, and the forgetting table."""

import math

import pytest
import torch

from luyen.core.errors import DataError
from luyen.core.records import Document
from luyen.evaluation.forgetting import table
from luyen.evaluation.perplexity import BitsPerByte, bits_per_byte
from luyen.models.transformer import Transformer
from luyen.tokenizer.load import Tokenizer

TEXTS = ["Return the sine of x.", "Học sâu: dữ liệu lớn và nhiều hơn nữa. " * 6, "x", "What does json.dumps do?"]
DOCUMENTS = [Document(str(number), text) for number, text in enumerate(TEXTS)]


def naive(model: Transformer, tokenizer: Tokenizer, length: int) -> float:
    """The same sum, one window and one softmax after another."""
    nats = 0.0
    for text in TEXTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + length + 1]
            logits = model.logits(model(torch.tensor([window[:-1]])))[0]
            nats -= float(torch.log_softmax(logits.double(), -1)[torch.arange(len(window) - 1), torch.tensor(window[1:])].sum())
    return nats


@pytest.mark.parametrize("length", [8, 64])
def test_equals_a_naive_sum(model: Transformer, tokenizer: Tokenizer, length: int) -> None:
    with torch.no_grad():
        expected = naive(model, tokenizer, length)
    cost = bits_per_byte(model, tokenizer, DOCUMENTS, length)
    assert cost.nats == pytest.approx(expected, rel=1e-5)
    assert cost.bytes == sum(len(text.encode()) for text in TEXTS)
    assert cost.tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert cost.value == pytest.approx(expected / math.log(2) / cost.bytes, rel=1e-5)


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary(model: Transformer, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    cost = bits_per_byte(model, tokenizer, DOCUMENTS)
    assert cost.value == pytest.approx(cost.tokens * math.log2(tokenizer.vocab_size) / cost.bytes, rel=1e-5)


def test_order_and_passes_do_not_matter_and_the_mode_stays(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train()
    first = bits_per_byte(model, tokenizer, DOCUMENTS)
    monkeypatch.setattr("luyen.evaluation.perplexity.TOKENS_PER_PASS", 10)
    second = bits_per_byte(model, tokenizer, DOCUMENTS[::-1])
    assert second.nats == pytest.approx(first.nats, rel=1e-5) and (second.bytes, second.tokens) == (first.bytes, first.tokens)
    assert model.training


def test_no_text(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no text to measure"):
        bits_per_byte(model, tokenizer, [Document("a", "")])


def test_forgetting_is_the_difference_from_the_first() -> None:
    rows = table({"base": BitsPerByte(math.log(2) * 200, 100, 50), "chat": BitsPerByte(math.log(2) * 230, 100, 50)})
    assert [row["model"] for row in rows] == ["base", "chat"]
    assert [row["heldout_bits_per_byte"] for row in rows] == pytest.approx([2.0, 2.3])
    assert [row["difference"] for row in rows] == pytest.approx([0.0, 0.3])
    assert table({}) == []
