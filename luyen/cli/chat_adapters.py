"""Several adapters on the model of a chat: one base in memory, and the tokenizer with which each is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from luyen.models.transformer import Transformer
    from luyen.tokenizer.load import Tokenizer

NO_ADAPTER = "none"
"""How the model itself is called, between its adapters."""


def base_for(adapters: Mapping[str, str]) -> str:
    """The model that the first of these adapters was trained on."""
    from luyen.adapters import files
    from luyen.adapters.many import located

    return str(files.base_of(located(next(iter(adapters.values())))))


def open_with(base: str, adapters: Mapping[str, str], device: torch.device) -> tuple[Transformer, dict[str | None, Tokenizer]]:
    """A base that carries the adapters of these places, and the tokenizer of each and, under None, of the base.

    A base without a chat template is asked in that of the first adapter, so that both can be compared.
    """
    from luyen.adapters import files
    from luyen.adapters.many import open_many
    from luyen.tokenizer.load import Tokenizer

    model = open_many(base, adapters, device)
    tokenizers: dict[str | None, Tokenizer] = {name: Tokenizer.load(files.locate_tokenizer(place)) for name, place in adapters.items()}
    own = Tokenizer.load(files.locate_tokenizer(base))
    first = next(iter(tokenizers.values()))
    return model, {None: own if own.has_template or not first.has_template else first, **tokenizers}
