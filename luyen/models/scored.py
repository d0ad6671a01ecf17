"""A decoder with numbers beside its words: one for each token (a critic), or read at a sequence's last token (a reward model).

    r = w . h_T        (Ouyang et al., 2022, arXiv:2203.02155, section 3.5; Touvron et al., 2023, arXiv:2307.09288, section 3.2.2)

A reward model is the chat model "except that the classification head for next-token prediction is replaced with a regression head". Its
files are those of Hugging Face's classifiers: the decoder's and `score.weight` (models/scored_files.py).

Shapes: B rows, T tokens, D hidden size, O numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luyen.models.attention import Cache, Layout
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer


class ScoredDecoder(nn.Module):
    """A decoder and a linear map of its hidden states to numbers. `forward` gives the states; `scores` are read where they are needed."""

    def __init__(self, decoder: Transformer, outputs: int = 1) -> None:
        """The map begins at zero: every answer is worth the same, and the ranking loss at ln 2. `outputs` above 1: auxiliary heads."""
        super().__init__()
        self.decoder = decoder
        weight = decoder.head_weight
        self.score = nn.Linear(decoder.config.hidden_size, outputs, bias=False, device=weight.device)
        if weight.device.type != "meta":
            nn.init.zeros_(self.score.weight)

    @property
    def config(self) -> TransformerConfig:
        """The decoder's."""
        return self.decoder.config

    def forward(self, tokens_BT: Tensor, layout: Layout | None = None, cache: Cache | None = None) -> Tensor:
        """The decoder's hidden states, (B, T, D)."""
        hidden_BTD: Tensor = self.decoder(tokens_BT, layout, cache)
        return hidden_BTD

    def scores(self, hidden: Tensor) -> Tensor:
        """Numbers of hidden states, (..., D) to (..., O), in fp32 or more exactly also under autocast: their differences are small."""
        with torch.autocast(hidden.device.type, enabled=False):
            scored: Tensor = self.score(hidden.to(self.score.weight.dtype))
        return scored


def without_words(decoder: Transformer) -> Transformer:
    """The decoder without a head of its own for words, in place: one that is tied keeps its embedding and nothing else of it."""
    if not decoder.config.tied:
        del decoder.lm_head
        decoder.config = decoder.config.model_copy(update={"tied": True})
    return decoder
