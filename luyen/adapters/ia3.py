"""(IA)^3: infused adapter by inhibiting and amplifying inner activations (Liu et al., 2022, arXiv:2205.05638, section 3.3).

    keys and values:  y = l * (W x + b)        l: O
    feed-forward:     y = W (l * x) + b        l: I, at the map that leads out of the layer, so l scales what the activation gave

All l start at one, so a fresh adapter changes nothing.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import AdaptedLinear, replace_each
from luyen.adapters.targets import ALL_LINEAR, matches, targets

OUTPUTS = ("k_proj", "v_proj")
"""Maps whose outputs are scaled where `targets` names none."""
INPUTS = ("down_proj",)
"""Maps whose inputs are scaled instead; they are targets too where `targets` names none."""


class IA3Linear(AdaptedLinear):
    """A frozen linear map with a trained factor for each output, or for each input."""

    def __init__(self, base: nn.Module, inputs: bool) -> None:
        super().__init__(base)
        like = next(base.parameters())
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.inputs = inputs
        # One axis, so that no optimizer takes it for a matrix and lets it decay to zero; PEFT's files hold (1, I) and (O, 1).
        self.ia3_l = nn.Parameter(torch.ones(self.in_features if inputs else self.out_features, device=like.device, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scaled in the factor's type and given on in the other's: rounded to bf16, a small change of a factor would be lost."""
        if self.inputs:
            result: Tensor = self.base((hidden * self.ia3_l).to(hidden.dtype))
            return result
        whole: Tensor = self.base(hidden)
        return (whole * self.ia3_l).to(whole.dtype)

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor | None]:
        """W with scaled columns, or W and b with scaled rows."""
        weight, bias = self.dense(), self.bias
        if self.inputs:
            return (weight * self.ia3_l).to(weight.dtype), None if bias is None else bias.detach().clone()
        return (weight * self.ia3_l[:, None]).to(weight.dtype), None if bias is None else (bias * self.ia3_l).to(bias.dtype)


def ia3(model: nn.Module, config: AdapterConfig) -> None:
    """Put (IA)^3 on keys, values and what leads out of the feed-forward layers of a frozen model, or on the named targets."""
    patterns = [*OUTPUTS, *INPUTS] if config.targets == [ALL_LINEAR] else config.targets
    names = targets(model, patterns)
    replace_each(model, names, lambda name, base: IA3Linear(base, any(matches(name, pattern) for pattern in INPUTS)))
