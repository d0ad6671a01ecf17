"""Who is asked: a model from its weights, the same model with the pages before it, the pages alone, an n-gram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from luyen.core.records import Document
from luyen.evaluation.generative import PLAIN_NOTE, TEMPLATE_NOTE, answer
from luyen.evaluation.perplexity import BitsPerByte, bits_per_byte
from luyen.inference.sampling import SamplingConfig
from luyen.models import hf
from luyen.models.transformer import Transformer
from luyen.retrieval.index import Index
from luyen.tasks.question_answering import Answer, Example
from luyen.tokenizer.load import Tokenizer


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
            return "asked in the chat template, with the best passage that retrieval finds as a system message"
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


def load_model(
    name: str | Path, sampling: SamplingConfig, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> ModelRespondent:
    """A model folder or hub name as a respondent."""
    folder = hf.locate(name)
    return ModelRespondent(hf.load(folder, device=device), Tokenizer.load(folder), sampling, batch_size)
