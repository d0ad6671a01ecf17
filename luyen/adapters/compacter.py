"""Compacter: bottleneck adapters whose maps are sums of Kronecker products (Mahabadi et al., 2021, arXiv:2106.04647, section 4).

    W = sum over i of A_i (x) (s_i t_i^T)        A_i: n x n,    s_i: in / n,    t_i: out / n

for the map down (W = D^T, from O to S) and the map up (W = U^T, from S to O) of `bottleneck`. The A_i are shared by all maps of all
layers; s_i and t_i are each map's own. So a map takes n (O + S) / n = O + S numbers instead of O S.

The t of the maps up start at zero, so a fresh adapter changes nothing; the rest so that the maps down vary as torch's linear maps do.

Shapes: O outputs of the frozen map, S size of the narrow layer, n factors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luyen.adapters.bottleneck import Bottleneck, places, put
from luyen.adapters.config import AdapterConfig
from luyen.core.errors import ConfigError


class CompacterLinear(Bottleneck):
    """The narrow network of Kronecker products."""

    def __init__(self, base: nn.Module, size: int, activation: str, dropout: float, first: CompacterLinear | int) -> None:
        """`first` is the adapter that holds the shared factors, or how many this one is to hold."""
        super().__init__(base, size, activation, dropout)
        new = self.down_bias.new_empty
        self._first: tuple[CompacterLinear, ...] = ()
        if isinstance(first, CompacterLinear):
            count = first.shared.shape[0]
            self._first = (first,)  # in a tuple, so that it is no child: what is shared has one owner and one name
        else:
            count = first
            self.shared_factors = nn.Parameter(new(count, count, count).normal_(0.0, count**-0.5))
        width = self.out_features
        self.down_left = nn.Parameter(new(count, width // count).normal_(0.0, (3 * width) ** -0.5))
        self.down_right = nn.Parameter(new(count, size // count).normal_())
        self.up_left = nn.Parameter(new(count, size // count).normal_(0.0, (3 * size) ** -0.5))
        self.up_right = nn.Parameter(new(count, width // count).zero_())

    @property
    def shared(self) -> Tensor:
        """All A_i, (n, n, n)."""
        return self._first[0].shared if self._first else self.shared_factors

    def maps(self) -> tuple[Tensor, Tensor]:
        """Made from their factors."""
        return kronecker_sum(self.shared, self.down_left, self.down_right).T, kronecker_sum(self.shared, self.up_left, self.up_right).T


def kronecker_sum(shared_nab: Tensor, left_np: Tensor, right_nq: Tensor) -> Tensor:
    """Sum over n of A_n (x) (s_n t_n^T), (a p, b q)."""
    made: Tensor = torch.einsum("nab,np,nq->apbq", shared_nab, left_np, right_nq)
    return made.flatten(0, 1).flatten(1)


def compacter(model: nn.Module, config: AdapterConfig) -> None:
    """Put Compacter after the sub-layers of a frozen model, or after the named targets. ConfigError where `factors` does not divide."""
    count, size = config.bottleneck.factors, config.bottleneck.size
    widths = {name: int(model.get_submodule(name).out_features) for name in places(model, config)}  # type: ignore[arg-type]
    for told, number in {"bottleneck.size": size, **widths}.items():
        if number % count:
            common = math.gcd(size, *widths.values())
            raise ConfigError("adapter.bottleneck.factors", found=f"{count}, which does not divide {number}, the width of {told}",
                              expected=f"a divisor of {common}")  # fmt: skip
    first: list[CompacterLinear] = []

    def make(base: nn.Module, size: int, activation: str, dropout: float) -> CompacterLinear:
        made = CompacterLinear(base, size, activation, dropout, first[0] if first else count)
        first.append(made)
        return made

    put(model, config, make)
