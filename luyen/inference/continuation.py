"""Texts continued by a model that was taught no conversation, each for itself: nothing of one is remembered in the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from luyen.core.errors import DataError
from luyen.inference.generate import stream
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

    def write(self, text: str) -> Iterator[str]:
        """How the model goes on after `text`, piece by piece, without `text` itself; after "" it writes a text from nothing.

        Closing the iterator stops it. Raises DataError for a text that leaves no room, or for "" when there is no beginning token.
        """
        start = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        prompt = start + self.tokenizer.encode(text)
        if not prompt:
            raise DataError("this model has no token that begins a text, so it cannot write one from nothing", fix="Type how it begins.")
        tokens = stream(self.model, prompt, self.sampling, self.tokenizer.stop_ids, copy=self.seen[text])
        self.seen[text] += 1
        return text_pieces(tokens, self.tokenizer, [], prompt)
