"""Texts continued by a model that was taught no conversation, each for itself: nothing of one is remembered in the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from luyen.core.errors import DataError
from luyen.inference.generate import generate_each, stream
from luyen.inference.pieces import text_pieces
from luyen.inference.sampling import SamplingConfig
from luyen.models.transformer import Transformer
from luyen.tokenizer.load import Tokenizer


@dataclass
class Continuation:
    """What is needed to go on from a text as pretraining showed texts: the beginning token, if there is one, and then the text."""

    model: Transformer
    tokenizer: Tokenizer
    sampling: SamplingConfig
    seen: Counter[str] = field(default_factory=Counter)
    """How often each text was continued: the same one again gets other draws (above temperature 0)."""
    adapter: str | None = None
    """Which of the adapters that the model carries writes; None: the model itself."""

    def write(self, text: str) -> Iterator[str]:
        """How the model goes on after `text`, piece by piece, without `text` itself; after "" it writes a text from nothing.

        Closing the iterator stops it. Raises DataError for a text that leaves no room, or for "" when there is no beginning token.
        """
        prompt = _prompt(self.tokenizer, text)
        tokens = stream(self.model, prompt, self.sampling, self.tokenizer.stop_ids, self.seen[text], self.adapter)
        self.seen[text] += 1
        return text_pieces(tokens, self.tokenizer, [], prompt)

    def write_each(self, text: str, tokenizers: Mapping[str | None, Tokenizer]) -> dict[str | None, str]:
        """How each adapter (None: the model itself) goes on after `text` with its tokenizer, all in one batch and of their first draws."""
        prompts = {name: _prompt(own, text) for name, own in tokenizers.items()}
        said = generate_each(self.model, prompts, self.sampling, {name: own.stop_ids for name, own in tokenizers.items()})
        return {name: "".join(text_pieces(iter(ids), tokenizers[name], [], prompts[name])) for name, ids in said.items()}


def _prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompt = start + tokenizer.encode(text)
    if not prompt:
        raise DataError("this model has no token that begins a text, so it cannot write one from nothing", fix="Type how it begins.")
    return prompt
