"""Fertility: counted by hand on a byte vocabulary, and what a rare language pays in a learnt one."""

from __future__ import annotations

from luyen.tokenizer.fertility import fertility, fragment_ids, fragment_names
from luyen.tokenizer.train import CONTROL, TokenizerConfig, train

ENGLISH = "the model reads the text and gives the answer to the question in the text of the page and the reader reads it"
VIETNAMESE = "mô hình đọc văn bản và trả lời câu hỏi trong văn bản của trang và người đọc đọc nó"


def test_counts_on_a_vocabulary_of_bytes() -> None:
    tokenizer = train(["a"], TokenizerConfig(vocab_size=264))
    rows = fertility(tokenizer, {"vi": ["đọc nó", "là"], "none": []})
    assert rows[0] == {
        "language": "vi",
        "documents": 2,
        "bytes": 13,  # 2 + 3 + 1, a space, 1 + 2; 1 + 2
        "words": 3,
        "tokens": 13,
        "tokens_per_word": 13 / 3,
        "bytes_per_token": 1.0,
        "single_byte_share": 9 / 13,  # those of đ, ọ, ó, à
        "unknown_share": 0.0,
    }
    assert rows[1]["documents"] == rows[1]["tokens"] == 0
    assert rows[1]["tokens_per_word"] is rows[1]["single_byte_share"] is None


def test_words_of_any_script_are_whole() -> None:
    tokenizer = train(["a"], TokenizerConfig(vocab_size=264))
    rows = fertility(tokenizer, {"mixed": ["Привет, мир! हिन्दी भाषा x_1 2024 e\u0301te\u0301"]})
    assert rows[0]["words"] == 7


def test_a_rare_language_pays_for_the_frequent_one() -> None:
    tokenizer = train([ENGLISH] * 95 + [VIETNAMESE] * 5, TokenizerConfig(vocab_size=310, min_frequency=6))
    fair = train([ENGLISH] * 50 + [VIETNAMESE] * 50, TokenizerConfig(vocab_size=310, min_frequency=6))
    texts = {"en": [ENGLISH] * 300, "vi": [VIETNAMESE] * 300}
    english, vietnamese = fertility(tokenizer, texts)
    assert vietnamese["tokens_per_word"] > 2 * english["tokens_per_word"]
    assert vietnamese["bytes_per_token"] < english["bytes_per_token"]
    assert vietnamese["single_byte_share"] > 0.3 > english["single_byte_share"] == 0
    assert fertility(fair, texts)[1]["tokens_per_word"] < vietnamese["tokens_per_word"]


def test_unknown_words_are_counted() -> None:
    tokenizer = train(["known words"] * 3, TokenizerConfig(kind="word", vocab_size=20))
    row = fertility(tokenizer, {"en": ["known words known strangers"]})[0]
    assert (row["words"], row["tokens"], row["unknown_share"]) == (4, 4, 0.5)  # " known" was never seen with a space before it


def test_spelling_of_single_bytes() -> None:
    tokenizer = train(["a"], TokenizerConfig(vocab_size=264))
    spelt = {tokenizer.token(index) for text in ("é", "漢", "😉", "\u0080") for index in tokenizer.encode(text)}
    assert spelt <= fragment_names()
    assert len(fragment_ids(tokenizer)) == 128
    assert tokenizer.vocab_size == len(CONTROL) + 256
    assert "<0xE1>" in fragment_names()
    assert "<0x41>" not in fragment_names()
