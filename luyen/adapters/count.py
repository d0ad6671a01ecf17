"""How many numbers an adapter trains, without the model: it is built and adapted on torch's meta device, which holds nothing."""

from __future__ import annotations

from functools import lru_cache

import torch

from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.adapters.esft import mark_most
from luyen.adapters.files import plain_names
from luyen.adapters.new_tokens import train_rows
from luyen.adapters.peft_names import plain_name
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer


def trained_weights(model: TransformerConfig, config: AdapterConfig, tokens: int = 0) -> int:
    """Numbers that are trained of a model of this size, the rows of new `tokens` in it included. Raises ConfigError where the adapter
    does not fit it."""
    return _counted(model.model_dump_json(), config.model_dump_json(), tokens)[0]


def own_weights(model: TransformerConfig, config: AdapterConfig, tokens: int = 0) -> int:
    """Those of them that are the model's own: all of `selective` and `esft`, of other methods what `also` names."""
    return _counted(model.model_dump_json(), config.model_dump_json(), tokens)[1]


@lru_cache(maxsize=64)
def _counted(model_json: str, config_json: str, tokens: int) -> tuple[int, int]:
    config = AdapterConfig.model_validate_json(config_json)
    plain = config.model_copy(update={"lora": config.lora.model_copy(update={"init": "default"})})  # how they start changes no size
    with torch.device("meta"):
        model = Transformer(TransformerConfig.model_validate_json(model_json))
        if plain.method == "esft":
            mark_most(model, plain.experts)
        adapt(model, plain)
        train_rows(model, range(model.config.vocab_size - tokens, model.config.vocab_size))
    names = plain_names(model)
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return sum(trained.values()), sum(count for name, count in trained.items() if plain_name(name) in names)
