"""BitFit: biases alone are trained (Ben Zaken et al., 2021, arXiv:2106.10199, section 3).

    y = W x + b + d        d: O, starts at zero, so a fresh adapter changes nothing

d is what is learned: the change of the bias, or the bias itself where the map has none. So it stands in the adapter's file and the base
stays as it was. Biases that are no map's (those of norms) are trained with `also`.

Merged, every map has a bias. A file of Llama's form has no place for one.

Shapes: O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import AdaptedLinear, replace_each
from luyen.adapters.targets import targets


class BiasLinear(AdaptedLinear):
    """A frozen linear map with a trained addition to its bias."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        like = next(base.parameters())
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.bias_change = nn.Parameter(torch.zeros(self.out_features, device=like.device, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        whole: Tensor = self.base(hidden)
        return (whole + self.bias_change).to(whole.dtype)

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor | None]:
        """W as it is, and b + d in its type."""
        weight, bias = self.dense(), self.bias
        change = self.bias_change if bias is None else bias + self.bias_change
        return weight.detach().clone(), change.to(weight.dtype, copy=True)


def bitfit(model: nn.Module, config: AdapterConfig) -> None:
    """Train the biases of the targets of a frozen model, and give those that have none one of zeros."""
    replace_each(model, targets(model, config.targets), lambda _, base: BiasLinear(base))
