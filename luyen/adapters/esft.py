"""Expert-specialised fine-tuning: of a mixture only the experts that the data goes to are trained (Wang et al., 2024, arXiv:2407.01906).

    by gate (equation 6):    a_e = mean over tokens of g_e,  0 where e is not among the token's K        by tokens (7): of 1/K for those K
    chosen in each layer: the smallest set, the largest first, with sum of a_e / sum of all a >= share   (equation 8)

The mean goes over tokens, not over samples first, and shares sum to 1 where a family's gates do not. Shared experts stay as they are. The
data is not the adapter's: whoever trains measures (`choose_experts`), marks (`mark`) and then adapts.

Shapes: N tokens, E experts, K of them for each token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig, ExpertChoiceConfig
from luyen.core.errors import ConfigError
from luyen.models.attention import Layout
from luyen.models.moe import Mixture, Routing, heard
from luyen.models.transformer import Transformer

SHARES = {"gate": 0.1, "tokens": 0.2}
"""The thresholds of the paper (section 5.1), each for its measure."""
CHOSEN = "chosen_experts"
Choice = dict[str, dict[int, float]]
"""Name of a mixture -> number of each chosen expert -> its share, the largest first."""


def mixtures(model: nn.Module) -> dict[str, Mixture]:
    """The layers with experts by name, in order. ConfigError where there are none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Mixture)}
    if not found:
        raise ConfigError("adapter.method", found="esft, and this model has no experts", expected="a mixture of experts",
                          fix="Take lora, or selective with also=[...].")  # fmt: skip
    return found


@torch.no_grad()
def choose_experts(model: Transformer, rows: Iterable[tuple[Tensor, Layout]], config: ExpertChoiceConfig) -> Choice:
    """Measure the experts on rows of tokens, each (tokens (1, T), its layout), and choose. The model is left as it was."""
    layers = mixtures(model)
    totals: list[Tensor] = []
    for tokens, layout in rows:
        with heard() as routings:
            model(tokens, layout)
        parts = [affinity(routing, mixture.normalised, config.by).cpu() for routing, mixture in zip(routings, layers.values(), strict=True)]
        totals = [before + part for before, part in zip(totals, parts, strict=True)] if totals else parts
    if not totals:
        raise ConfigError("adapter.experts.samples", found="no rows to measure", expected="data")
    share = config.share or SHARES[config.by]
    return {name: smallest(total / total.sum(), share) for name, total in zip(layers, totals, strict=True)}


def affinity(routing: Routing, normalised: bool, by: str) -> Tensor:
    """What the tokens of a pass give to every expert in sum, (E,) in fp64: scores of the gate or selections."""
    logits_NE, choice_NK = routing.logits_NE, routing.choice_NK
    weight_NK = logits_NE.double().softmax(-1).gather(-1, choice_NK)
    if by == "tokens":
        weight_NK = torch.ones_like(weight_NK)
    elif normalised:
        weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
    return torch.zeros_like(logits_NE, dtype=torch.float64).scatter_(1, choice_NK, weight_NK).sum(0)


def smallest(shares_E: Tensor, share: float) -> dict[int, float]:
    """The fewest experts whose shares add up to `share`, the largest first; of equals the first."""
    chosen: dict[int, float] = {}
    for number in shares_E.argsort(descending=True, stable=True).tolist():
        if sum(chosen.values()) >= share - 1e-9:
            break
        chosen[number] = float(shares_E[number])
    return chosen


def mark(model: nn.Module, choice: Mapping[str, Iterable[int]]) -> None:
    """Keep with every mixture which of its experts `esft` trains."""
    for name, mixture in mixtures(model).items():
        setattr(mixture, CHOSEN, tuple(choice[name]))


def mark_most(model: nn.Module, config: ExpertChoiceConfig) -> None:
    """Without data: as many experts of every layer as could be chosen at most, when all have the same share."""
    share = config.share or SHARES[config.by]
    mark(model, {name: range(math.ceil(share * mixture.count - 1e-9)) for name, mixture in mixtures(model).items()})


def esft(model: nn.Module, config: AdapterConfig) -> None:
    """Train the marked experts of a frozen model, and the routers where the config says so. ConfigError where none are marked."""
    for mixture in mixtures(model).values():
        chosen = getattr(mixture, CHOSEN, None)
        if chosen is None:
            raise ConfigError("adapter.method", found="esft without data to choose experts by", expected="a stage that trains",
                              fix="Run luyen sft or luyen pretrain, which measure them on their data.")  # fmt: skip
        for number in chosen:
            mixture.experts.get_submodule(str(number)).requires_grad_(True)
        if config.experts.router:
            mixture.gate.requires_grad_(True)
