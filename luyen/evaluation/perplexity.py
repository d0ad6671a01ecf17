"""Bits per byte: what a text costs a model, in a unit that does not depend on its tokenizer.

    bits per byte = (sum over all tokens of -ln p(token | tokens before it)) / ln 2 / (number of UTF-8 bytes)

Every byte of every document counts, and every token is predicted exactly once. A document is `bos + text`; one that is longer than
`length` is cut into windows, and a window sees nothing of the one before but its last token. So a short `length` costs bits: compare
models at the same length. A tokenizer without bos leaves a document's first token unpredicted; it is charged ln(vocabulary) nats.
The end-of-text token is not counted, because it stands for no byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from luyen.adapters.preamble import room_of
from luyen.core import interrupt
from luyen.core.errors import DataError
from luyen.core.records import Document
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer
from luyen.objectives.language_model import linear_cross_entropy
from luyen.tokenizer.load import Tokenizer

TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class BitsPerByte:
    """The cost of some documents."""

    nats: float
    """Sum over all tokens."""
    bytes: int
    """UTF-8 bytes of the text."""
    tokens: int
    unknown: int = 0
    """Tokens that stand for text outside the vocabulary; with any of them the figure is too low."""

    @property
    def value(self) -> float:
        """Bits per byte."""
        return self.nats / math.log(2) / self.bytes


def bits_per_byte(model: Transformer, tokenizer: Tokenizer, documents: Iterable[Document], length: int | None = None) -> BitsPerByte:
    """The cost of the documents in windows of at most `length` tokens (None: as many as the model's context length has room for).

    DataError when they hold no text. The model is left in the mode it was in.
    """
    length = length or room_of(model)
    texts = [document.text for document in documents if document.text]
    if not texts:
        raise DataError("no text to measure", expected="at least one document that is not empty")
    encoded = tokenizer.encode_batch(texts)
    nats = math.log(model.config.vocab_size) * (len(encoded) if tokenizer.bos_id is None else 0)
    was_training = model.training
    model.eval()
    try:
        for windows in _passes(_windows(encoded, tokenizer.bos_id, length), TOKENS_PER_PASS):
            interrupt.check()
            nats += _cost(model, windows)
    finally:
        model.train(was_training)
    unknown = sum(ids.count(tokenizer.unknown_id) for ids in encoded) if tokenizer.unknown_id is not None else 0
    return BitsPerByte(nats, sum(len(text.encode()) for text in texts), sum(map(len, encoded)), unknown)


def _windows(encoded: Iterable[Sequence[int]], bos: int | None, length: int) -> Iterator[list[int]]:
    """Pieces of at most `length` + 1 ids; the first id of a piece is only read, the others are predicted."""
    for ids in encoded:
        whole = list(ids) if bos is None else [bos, *ids]
        for start in range(0, len(whole) - 1, length):
            yield whole[start : start + length + 1]


def _passes(windows: Iterable[list[int]], limit: int) -> Iterator[list[list[int]]]:
    pending: list[list[int]] = []
    total = 0
    for window in windows:
        if pending and total + len(window) - 1 > limit:
            yield pending
            pending, total = [], 0
        pending.append(window)
        total += len(window) - 1
    if pending:
        yield pending


@torch.inference_mode()
def _cost(model: Transformer, windows: Sequence[Sequence[int]]) -> float:
    device = model.head_weight.device
    layout = Layout.packed([len(window) - 1 for window in windows], device)
    tokens = torch.tensor([[token for window in windows for token in window[:-1]]], device=device)
    targets = torch.tensor([token for window in windows for token in window[1:]], device=device)
    hidden = model(tokens, layout=layout)[0]
    return float(linear_cross_entropy(hidden, model.head_weight, targets))
