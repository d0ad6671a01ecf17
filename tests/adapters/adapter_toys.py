"""A small decoder with a batch, and the same in transformers for PEFT."""

from typing import Any

import torch
from torch import Tensor, nn

from luyen.adapters.adapt import adapt
from luyen.adapters.config import READ, AdapterConfig
from luyen.core.config import load
from luyen.models.attention import Layout
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

SIZE = TransformerConfig(
    vocab_size=97, hidden_size=32, intermediate_size=56, num_layers=2, num_heads=4, num_kv_heads=2, context_length=128, tied=False
)  # fmt: skip
LENGTHS = (50, 30, 20)


def model(seed: int = 0, **changes: Any) -> Transformer:
    """Random weights, large enough that every part of the model matters."""
    torch.manual_seed(seed)
    made = Transformer(TransformerConfig(**{**SIZE.model_dump(), **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return made


def tokens() -> Tensor:
    """One packed row of LENGTHS."""
    return torch.randint(SIZE.vocab_size, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(3))


def logits(made: Transformer, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """Of every token."""
    return made.logits(made(tokens()[:, : sum(lengths)], Layout.packed(lengths)))


def config(**values: Any) -> AdapterConfig:
    """A config with what differs from the defaults, as far as its method reads it: tests of all methods give the same sizes."""
    method = values.get("method", "lora")
    read = {key: value for key, value in values.items() if key in READ[method]}
    return load(AdapterConfig, {"method": method, **read})


def adapted_model(seed: int = 1, **values: Any) -> Transformer:
    """The model with a fresh adapter."""
    made = model()
    torch.manual_seed(seed)
    adapt(made, config(**values))
    return made


def shake(made: Transformer) -> None:
    """Give every trained parameter other values, the same for the same names."""
    with torch.no_grad():
        for index, (_, parameter) in enumerate(made.named_parameters()):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                parameter.add_(noise.to(parameter) * 0.1)


def kept_by(module: nn.Module, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a module gives, and every tensor that it keeps for its backward pass."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        return module(hidden), kept
