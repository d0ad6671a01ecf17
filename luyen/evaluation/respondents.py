"""Who is asked: a model from its weights, the same model with the pages before it, the pages alone, an n-gram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from luyen.adapters import files
from luyen.adapters.shared import open_shared
from luyen.core import interrupt, progress
from luyen.core.records import Document, Message
from luyen.evaluation.generative import PLAIN_NOTE, TEMPLATE_NOTE, answer
from luyen.evaluation.perplexity import BitsPerByte, bits_per_byte
from luyen.inference.config import SamplingConfig
from luyen.models.ngram import NGram
from luyen.models.transformer import Transformer
from luyen.retrieval.index import Index
from luyen.tasks.question_answering import Answer, Example
from luyen.tokenizer.chat import render_batch
from luyen.tokenizer.load import Tokenizer

NGRAM_TOKENS = 400_000
"""Most tokens that an n-gram counts by default: about 3 s of one core."""


class Respondent(Protocol):
    """Something that answers questions and may have a probability for text."""

    @property
    def note(self) -> str:
        """How it is asked, in words."""

    def answers(self, examples: Sequence[Example], name: str) -> list[Answer]:
        """One answer an example, in order; `name` is what progress is shown under."""

    def cost(self, documents: Sequence[Document]) -> BitsPerByte | None:
        """What the documents cost, or None when it has no probabilities."""


@dataclass(frozen=True)
class ModelRespondent:
    """A model that answers from its weights or, with an index, with the best passage before the question."""

    model: Transformer
    tokenizer: Tokenizer
    sampling: SamplingConfig
    batch_size: int = 64
    index: Index | None = None
    length: int | None = None
    """Window of bits per byte in tokens; None: the model's context length."""

    @property
    def note(self) -> str:
        """How it is asked, in words."""
        if self.index is not None:
            return "asked in the chat template, with the best passage that retrieval finds as a system message, where one is relevant"
        return TEMPLATE_NOTE if self.tokenizer.has_template else PLAIN_NOTE

    def answers(self, examples: Sequence[Example], name: str) -> list[Answer]:
        """One answer an example."""
        return answer(
            self.model, self.tokenizer, examples, self.sampling, batch_size=self.batch_size, index=self.index, name=name
        )  # fmt: skip

    def cost(self, documents: Sequence[Document]) -> BitsPerByte | None:
        """Bits per byte of the weights; None with an index, where it would be the same figure again."""
        return None if self.index is not None else bits_per_byte(self.model, self.tokenizer, documents, self.length)


@dataclass(frozen=True)
class RetrievalRespondent:
    """The pages alone: what the best passage says about itself, or its title when the question does not name it.

    It knows every entry, also those that no model was taught, and never says that it does not know unless no word of the question is
    in the pages.
    """

    index: Index

    @property
    def note(self) -> str:
        """How it is asked, in words."""
        return "the best passage by BM25: its description, or its name when the question does not hold it; no learning"

    def answers(self, examples: Sequence[Example], name: str) -> list[Answer]:
        """One answer an example; empty when nothing is found."""
        return [Answer(self._answer(example.question)) for example in examples]

    def _answer(self, question: str) -> str:
        hits = self.index.search(question, 1)
        if not hits:
            return ""
        passage = hits[0].passage
        named = passage.title.casefold() in question.casefold()
        return (passage.answer or passage.text.partition("\n")[0]) if named else passage.title

    def cost(self, documents: Sequence[Document]) -> BitsPerByte | None:
        """None: it has no probabilities."""
        return None


@dataclass(frozen=True)
class NGramRespondent:
    """An n-gram over the same tokenizer's ids, counted over documents and training conversations; it continues the chat prompt."""

    ngram: NGram
    tokenizer: Tokenizer
    max_new_tokens: int
    tokens: int
    """Tokens that were counted."""

    @classmethod
    def fit(
        cls, tokenizer: Tokenizer, documents: Iterable[Document], conversations: Iterable[Sequence[Message]] = (), *,
        order: int = 5, max_new_tokens: int = 64, most_tokens: int = NGRAM_TOKENS,
    ) -> NGramRespondent:  # fmt: skip
        """Count documents and conversations in their order, at most half of `most_tokens` of each. DataError when there are none."""
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        sequences: list[list[int]] = []
        for source in ((tokenizer.encode(document.text) + end for document in documents), _talks(tokenizer, conversations)):
            room = most_tokens // 2
            for sequence in source:
                interrupt.check()
                sequences.append(sequence[:room])
                room -= len(sequences[-1])
                if room <= 0:
                    break
        return cls(NGram(order, tokenizer.vocab_size).fit(sequences), tokenizer, max_new_tokens, sum(map(len, sequences)))

    @property
    def note(self) -> str:
        """How it is asked, in words."""
        return f"Kneser-Ney {self.ngram.order}-gram over {self.tokens} tokens of the same text, continuing the chat template"

    def answers(self, examples: Sequence[Example], name: str) -> list[Answer]:
        """The most likely continuation of every prompt."""
        answers = []
        rendered = render_batch(self.tokenizer, [example.messages for example in examples], add_generation_prompt=True)
        with progress.task(name, len(examples), "questions") as task:
            for row in rendered:
                interrupt.check()
                made = self.ngram.greedy(_without_bos(self.tokenizer, row.ids), self.max_new_tokens, self.tokenizer.stop_ids)
                answers.append(Answer(self.tokenizer.decode(made).strip(), len(made) < self.max_new_tokens))
                task.advance()
        return answers

    def cost(self, documents: Sequence[Document]) -> BitsPerByte | None:
        """Bits per byte, each document in one window."""
        texts = [document.text for document in documents if document.text]
        encoded = self.tokenizer.encode_batch(texts)
        nats = sum(self.ngram.score(ids) for ids in encoded)
        return BitsPerByte(nats, sum(len(text.encode()) for text in texts), sum(map(len, encoded)))


def _talks(tokenizer: Tokenizer, conversations: Iterable[Sequence[Message]]) -> Iterator[list[int]]:
    iterator = iter(conversations)
    while batch := list(islice(iterator, 256)):
        for row in render_batch(tokenizer, batch):
            yield _without_bos(tokenizer, row.ids)


def _without_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The n-gram has its own mark for the beginning."""
    return list(ids[1:] if ids and ids[0] == tokenizer.bos_id else ids)


def load_model(
    name: str | Path,
    sampling: SamplingConfig,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ModelRespondent:
    """A model's or adapter's folder or hub name as a respondent; its weights on `device` in `dtype`."""
    return ModelRespondent(files.open_model(name, device, dtype), Tokenizer.load(files.locate_tokenizer(name)), sampling, batch_size)


def load_models(
    names: Mapping[str, str | Path],
    sampling: SamplingConfig,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, ModelRespondent]:
    """Several of them by their names here; weights that they share are in memory once."""
    opened = open_shared(names, device, dtype)
    tokenizers = {name: Tokenizer.load(files.locate_tokenizer(place)) for name, place in names.items()}
    return {name: ModelRespondent(model, tokenizers[name], sampling, batch_size) for name, model in opened.items()}
