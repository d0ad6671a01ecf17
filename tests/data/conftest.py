"""A tokenizer of a few hundred ids, trained once."""

import pytest

from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

TEXTS = [
    "The function dumps turns an object into a string. What does json.dumps do?",
    "Xin chào thế giới, luyện mô hình ngôn ngữ.",
    "Привет, мир! Что делает эта функция?",
] * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train(TEXTS, TokenizerConfig(vocab_size=330))
