"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691, section 2) and P-tuning (Liu et al., 2021, arXiv:2103.10385, section 3).

    decoder([p_1 ... p_P ; e(x_1) ... e(x_T)])        p_i learned, e the frozen embedding

Prompt tuning learns the vectors p_i themselves, which start as the embeddings of tokens: random ones, or those of a text. P-tuning learns
a network that makes them from P vectors of its own, p_i = f(h_i): a multilayer perceptron, or as in the paper a bidirectional LSTM before
one, which lets the vectors of a prompt agree with each other. Once trained the network has done its work: its vectors are what is saved.

Inside the decoder the learned vector i is the token V + i: a table in the place of the embedding knows these too.

Shapes: B rows, T tokens, W places of tokens and learned positions, P learned positions, N of either, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.adapters.config import AdapterConfig
from luyen.adapters.preamble import Preamble, Preambled, Vectors, decoder_for, install
from luyen.models.attention import Cache
from luyen.models.transformer import Transformer


class PromptedEmbedding(Preamble):
    """An embedding table with P learned vectors behind its V rows; `weight` is the table's alone, as a tied head reads it."""

    def __init__(self, base: nn.Embedding, tokens: int, vectors: Vectors) -> None:
        super().__init__(tokens, vectors)
        self.base = base

    @property
    def weight(self) -> Tensor:
        """The table itself, (V, D)."""
        return self.base.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Embedded tokens and learned vectors, in the table's type."""
        if tokens_BT.shape[1] == 1:  # a step of generation: a learned position never stands without a token behind it
            embedded: Tensor = self.base(tokens_BT)
            return embedded
        size = self.base.num_embeddings
        found_BTD = self.base(tokens_BT.clamp_max(size - 1))
        learned_BTD = functional.embedding((tokens_BT - size).clamp_min(0), self.vectors())
        return torch.where((tokens_BT >= size)[..., None], learned_BTD.to(found_BTD.dtype), found_BTD)

    def opened(self, tokens_BT: Tensor, whole: Preambled, cache: Cache | None) -> tuple[Tensor, Cache | None]:
        """Ids from V on at the learned positions."""
        ids_W = (whole.positions_T + self.base.num_embeddings).index_copy(0, whole.real_T, tokens_BT.flatten().to(torch.int64))
        return ids_W[None], cache

    def closed(self, hidden_1ND: Tensor, whole: Preambled) -> Tensor:
        """The learned positions' own hidden states are nobody's. A copy: FSDP watches what a model gives, and a view not well."""
        return whole.shortened(hidden_1ND[0]).view(*whole.rows, -1).clone()

    @torch.no_grad()
    def begin(self, decoder: Transformer, ids: Sequence[int]) -> None:
        """The embeddings of the ids."""
        self.vectors.weight.copy_(self.base.weight[torch.tensor(ids, device=self.base.weight.device)])


class Recurrent(nn.Module):
    """P-tuning's network: a bidirectional LSTM of two layers over the P vectors, then a perceptron of two."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, size))

    def forward(self, start_PD: Tensor) -> Tensor:
        """(P, D) to (P, D); the P vectors are one sequence."""
        made_PD: Tensor = self.perceptron(self.lstm(start_PD[None])[0][0])
        return made_PD


def perceptron(size: int, hidden: int) -> nn.Sequential:
    """The network that PEFT takes by default: three maps of each vector alone."""
    return nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size))


def prompt(model: nn.Module, config: AdapterConfig) -> None:
    """Put learned vectors before every sequence of a frozen decoder; they start as the embeddings of random tokens.

    Not the identity: a fresh prompt is P random words. ConfigError for another kind of model.
    """
    decoder = decoder_for(model, config.prompt.tokens)
    weight = decoder.model.embed_tokens.weight
    ids = torch.randint(weight.shape[0], (config.prompt.tokens,), device="cpu")
    start_PD = weight.detach()[ids.to(weight.device)].to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    _prompted(decoder, config.prompt.tokens, Vectors(start_PD))


def p_tuning(model: nn.Module, config: AdapterConfig) -> None:
    """Put vectors that a network makes before every sequence of a frozen decoder. Not the identity, and ConfigError, as `prompt`."""
    tokens = config.prompt.tokens
    decoder = decoder_for(model, tokens)
    weight = decoder.model.embed_tokens.weight
    size = weight.shape[1]
    hidden = config.prompt.hidden or size
    kind = {"perceptron": perceptron, "lstm": Recurrent}[config.prompt.network]
    dtype = torch.promote_types(weight.dtype, torch.float32)
    network = kind(size, hidden).to(weight.device, dtype)
    _prompted(decoder, tokens, Vectors(torch.randn(tokens, size).to(weight.device, dtype), network))


def _prompted(decoder: Transformer, tokens: int, vectors: Vectors) -> None:
    table = PromptedEmbedding(decoder.model.embed_tokens, tokens, vectors)
    decoder.model.embed_tokens = table  # type: ignore[assignment]
    install(decoder, table)
