"""A conversation with a model, answer after answer, optionally over passages found for each question.

Retrieval puts what it found into a system message before the question: the model reads the passages and the person sees
which ones they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from luyen.adapters.preamble import room_of
from luyen.core.errors import DataError
from luyen.core.records import Message
from luyen.inference.generate import generate_each, stream
from luyen.inference.pieces import text_pieces
from luyen.inference.sampling import SamplingConfig
from luyen.models.transformer import Transformer
from luyen.retrieval.context import context_message
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer


@dataclass(frozen=True)
class Source:
    """A passage that was given to the model."""

    title: str
    text: str
    url: str = ""
    answer: str = ""
    """The passage in one sentence, where that is known."""


@dataclass
class ChatSession:
    """Messages so far, and what is needed to answer the next one."""

    model: Transformer
    tokenizer: Tokenizer
    sampling: SamplingConfig
    retrieve: Callable[[str], list[Source]] | None = None
    """Question -> passages, best first; None: the model answers from its weights alone."""
    messages: list[Message] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    """What the last answer was given to read."""
    forgotten: int = 0
    """Earlier messages left out of the last prompt because they did not fit."""
    adapter: str | None = None
    """Which of the adapters that the model carries answers; None: the model itself."""

    def ask(self, question: str) -> Iterator[str]:
        """The answer to `question`, piece by piece. Closing the iterator stops it; what was said until then stays said."""
        self.sources = self.retrieve(question) if self.retrieve else []
        asked = [*self.messages, Message("user", question)]
        prompt = self._prompt(asked)  # a template that refuses the question leaves the conversation as it was
        self.messages = asked
        answer: list[int] = []
        try:
            tokens = stream(self.model, prompt, self.sampling, self.tokenizer.stop_ids, adapter=self.adapter)
            yield from text_pieces(tokens, self.tokenizer, answer)
        finally:
            self.messages.append(Message("assistant", self.tokenizer.decode(answer)))

    def ask_each(self, question: str, tokenizers: Mapping[str | None, Tokenizer]) -> dict[str | None, str]:
        """What each adapter (None: the model itself), asked with its tokenizer, would answer now, all in one batch.

        The conversation stays as it was.
        """
        asked, found = [*self.messages, Message("user", question)], self.retrieve(question) if self.retrieve else []
        sessions = {name: replace(self, tokenizer=own, adapter=name, sources=list(found)) for name, own in tokenizers.items()}
        prompts = {name: session._prompt(asked) for name, session in sessions.items()}
        self.sources = max((session.sources for session in sessions.values()), key=len, default=[])
        self.forgotten = max((session.forgotten for session in sessions.values()), default=0)
        ends = {name: own.stop_ids for name, own in tokenizers.items()}
        said = generate_each(self.model, prompts, self.sampling, ends)
        return {name: tokenizers[name].decode(ids) for name, ids in said.items()}

    def _prompt(self, asked: list[Message]) -> list[int]:
        """The conversation as ids, oldest exchanges left out until an answer fits; a system message at its head stays."""
        room = room_of(self.model)
        limit = room - min(self.sampling.max_new_tokens, room // 2)
        head = [asked[0].content] if asked[0].role == "system" else []
        talk = asked[len(head) :]
        whole = len(talk)
        while True:
            ids = self._render([*head, *(source.text for source in self.sources)], talk)
            if len(ids) <= limit:
                break
            if len(talk) > 2:
                talk = talk[2:]
            elif self.sources:
                self.sources = self.sources[:-1]
            else:
                raise DataError("the question is too long", found=f"{len(ids)} tokens", expected=f"at most {limit}")
        self.forgotten = whole - len(talk)
        return ids

    def _render(self, passages: list[str], talk: list[Message]) -> list[int]:
        """Ids of a conversation after what the model is given to read; before the question where the template has no system role."""
        if not passages:
            return render(self.tokenizer, talk, add_generation_prompt=True).ids
        context = context_message(passages)
        try:
            return render(self.tokenizer, [context, *talk], add_generation_prompt=True).ids
        except DataError:
            joined = Message("user", f"{context.content}\n\n{talk[-1].content}")
            return render(self.tokenizer, [*talk[:-1], joined], add_generation_prompt=True).ids
