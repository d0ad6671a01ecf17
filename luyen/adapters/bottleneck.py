"""Bottleneck adapters: a narrow network after a sub-layer (Houlsby et al., 2019, arXiv:1902.00751, section 2.1).

    y = h + U f(D h + d) + u        h = W x + b,    D: S x O,    U: O x S

It stands after attention and feed-forward (houlsby), or after feed-forward alone (pfeiffer, which the search of Pfeiffer et al., 2020,
arXiv:2005.00247, chose), before the sub-layer joins the residual path. Of a mixture of experts the sub-layer's output is that of the
mixture, so there h is it and the adapter stands once after all experts; `targets` can name maps inside of them. D starts as torch's
linear maps do, U and u at zero, so a fresh adapter changes nothing. No plain map computes this, so it cannot be merged.

Shapes: N tokens, I inputs, O outputs, S size of the narrow layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import AdaptedLinear, replace_each
from luyen.adapters.lora import product_dtype
from luyen.adapters.targets import ALL_LINEAR, targets
from luyen.models.moe import Mixture

PLACES = {"houlsby": ("o_proj", "down_proj"), "pfeiffer": ("down_proj",)}
"""Maps that lead out of the sub-layers, of a mixture those of its experts, after which the adapter stands where `targets` names none."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu}


class Bottleneck(AdaptedLinear, ABC):
    """A frozen linear map or mixture of experts and a trained narrow network after it, whose two maps the kinds make each in their way."""

    def __init__(self, base: nn.Module, size: int, activation: str, dropout: float) -> None:
        super().__init__(base)
        like = next(base.parameters())
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.activation, self.dropout = activation, dropout
        self.down_bias = nn.Parameter(torch.zeros(size, device=like.device, dtype=dtype))
        self.up_bias = nn.Parameter(torch.zeros(self.out_features, device=like.device, dtype=dtype))

    @abstractmethod
    def maps(self) -> tuple[Tensor, Tensor]:
        """(D, U)."""

    def forward(self, hidden: Tensor) -> Tensor:
        whole: Tensor = self.base(hidden)
        dtype = product_dtype(hidden)
        down_SO, up_OS, down_bias, up_bias = (part.to(dtype) for part in (*self.maps(), self.down_bias, self.up_bias))
        seen = functional.dropout(whole, self.dropout, self.training)
        narrow = ACTIVATIONS[self.activation](functional.linear(seen, down_SO, down_bias))
        return whole + functional.linear(narrow, up_OS, up_bias)


class BottleneckLinear(Bottleneck):
    """The narrow network of two plain matrices."""

    def __init__(self, base: nn.Module, size: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__(base, size, activation, dropout)
        self.down_weight = nn.Parameter(self.down_bias.new_empty(size, self.out_features))
        self.up_weight = nn.Parameter(self.down_bias.new_zeros(self.out_features, size))
        nn.init.kaiming_uniform_(self.down_weight, a=math.sqrt(5))

    def maps(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.down_weight, self.up_weight


def bottleneck(model: nn.Module, config: AdapterConfig) -> None:
    """Put bottleneck adapters after the sub-layers of a frozen model, or after the named targets."""
    put(model, config, BottleneckLinear)


def put(model: nn.Module, config: AdapterConfig, kind: Callable[[nn.Module, int, str, float], Bottleneck]) -> None:
    """Put a kind of bottleneck on the maps that the placement or `targets` names."""
    chosen = config.bottleneck
    replace_each(model, places(model, config), lambda _, base: kind(base, chosen.size, chosen.activation, config.dropout))


def places(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Names of the modules after which a bottleneck stands: maps, mixtures in the place of maps in them, unless `targets` names some."""
    if config.targets != [ALL_LINEAR]:
        return targets(model, config.targets)
    mixtures = [f"{name}." for name, module in model.named_modules() if isinstance(module, Mixture)]
    maps = targets(model, PLACES[config.bottleneck.placement])
    owners = (next((mixture for mixture in mixtures if name.startswith(mixture)), name) for name in maps)
    return list(dict.fromkeys(owner.removesuffix(".") for owner in owners))
