"""Feed-forward layers: the plain one, and mixtures of experts of which every token takes a few.

    FeedForward(x) = down(silu(gate(x)) * up(x))                                  (SwiGLU: Shazeer, 2020, arXiv:2002.05202)

    p = softmax(W x)     C = the k largest of p     g_e = p_e, or p_e / sum over C of p
    Mixture(x) = sum over e in C of g_e FeedForward_e(x)  +  sigmoid(w x) FeedForward_shared(x)

Mixtral (Jiang et al., 2024, arXiv:2401.04088, section 2.1) divides by the sum, OLMoE (Muennighoff et al., 2024, arXiv:2409.02060) does not;
the shared expert is Qwen1.5-MoE's. No expert has a capacity, so no token is dropped. What a router is asked in a pass can be heard
(`heard`): training adds the balance of the load, analysis reads which experts a token goes to.

Shapes: B rows, T tokens, D hidden size, N = B T tokens, E experts, K of them for each token, P = N K places, M places of one expert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.models.config import ExpertsConfig
from luyen.models.functions import pad, swiglu


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate_size, bias=False)
        self.up_proj = nn.Linear(width, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(swiglu(self.gate_proj(hidden), self.up_proj(hidden)))
        return output


class Router(nn.Module):
    """Scores in fp32, whatever the type of the products: near ties decide (Fedus et al., 2021, arXiv:2101.03961, section 2.4)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = width, count, None
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return functional.linear(hidden_ND.float(), self.weight.float())


class Experts(nn.Module):
    """Feed-forward layers named 0, 1, 2 ...; no nn.ModuleList, since to those who transform a model such a list is its layers."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        for number in range(config.count):
            self.add_module(str(number), FeedForward(width, config.intermediate_size))

    def forward(self, hidden_PD: Tensor, counts: list[int]) -> Tensor:
        """Each expert's result for its rows, which stand together. One without rows computes too: so its gradient is 0 and not absent."""
        parts = [expert(part_MD) for expert, part_MD in zip(self.children(), hidden_PD.split_with_sizes(counts), strict=True)]
        return torch.cat(parts)


class Mixture(nn.Module):
    """Experts, the router that chooses among them, and the expert that all tokens share."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.in_features = self.out_features = width
        self.count, self.per_token, self.normalised = config.count, config.per_token, config.normalised
        self.gate = Router(width, config.count)
        self.experts = Experts(width, config)
        self.shared_expert = FeedForward(width, config.shared_size) if config.shared_size else None
        self.shared_expert_gate = Router(width, 1) if config.shared_size else None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """What the chosen experts make of every token, wherever it stands."""
        hidden_ND = hidden_BTD.flatten(0, -2)
        exact_ND = hidden_ND.float()  # once for both routers, which keep it
        with torch.autocast(exact_ND.device.type, enabled=False):  # also for what may stand around the router
            logits_NE = self.gate(exact_ND)
        weight_NK, choice_NK = choose(logits_NE, self.per_token, self.normalised)
        _tell(Routing(logits_NE, choice_NK))
        output_ND = self._routed(hidden_ND, weight_NK, choice_NK)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            share_N1 = self.shared_expert_gate(exact_ND).sigmoid().to(output_ND.dtype)
            output_ND = output_ND + share_N1 * self.shared_expert(hidden_ND)
        return output_ND.view_as(hidden_BTD)

    def _routed(self, hidden_ND: Tensor, weight_NK: Tensor, choice_NK: Tensor) -> Tensor:
        """Places sorted by expert and back: both ways a permutation, so gradients are gathered too and nothing is added in any order."""
        choice_P = choice_NK.flatten()
        order_P = choice_P.argsort(stable=True)
        place_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(len(order_P), device=order_P.device))
        counts: list[int] = torch.bincount(choice_P, minlength=self.count).tolist()
        copies_PD = hidden_ND[:, None].expand(-1, self.per_token, -1).flatten(0, 1)
        result_PD = self.experts(pad(copies_PD, order_P, place_P), counts)
        result_NKD = pad(result_PD, place_P, order_P).view(*choice_NK.shape, -1)
        return (result_NKD * weight_NK[..., None].to(result_NKD.dtype)).sum(1)


def choose(logits_NE: Tensor, per_token: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Weights and numbers of each token's experts, (N, K) each, the largest first."""
    weight_NK, choice_NK = logits_NE.softmax(-1).topk(per_token, -1)
    if normalised:
        weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
    return weight_NK, choice_NK


class Routing(NamedTuple):
    """What the router of one layer said of the tokens of a pass."""

    logits_NE: Tensor
    choice_NK: Tensor
    """Numbers of the experts that each token went to, that with the largest weight first."""


_listener: ContextVar[list[Routing] | None] = ContextVar("routings", default=None)


def _tell(routing: Routing) -> None:
    if (routings := _listener.get()) is not None:
        routings.append(routing)


@contextlib.contextmanager
def heard() -> Iterator[list[Routing]]:
    """Within the block every router's `Routing` goes into the list, in the order of the layers; it stays empty for a plain model."""
    routings: list[Routing] = []
    before = _listener.set(routings)
    try:
        yield routings
    finally:
        _listener.reset(before)
