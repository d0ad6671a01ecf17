"""AdaLoRA: ranks move to the weights where they matter (Zhang et al., 2023, arXiv:2303.10512, section 3, algorithm 1).

    y = x (W + s P L Q)^T + b        Q (lora_A): R x I,    L (lora_E): R numbers,    P (lora_B): O x R,    s = alpha / R

All maps start with R = `start_rank`; L starts at zero, so a fresh adapter changes nothing. A penalty keeps P and Q orthogonal, so that the
numbers of L mean what singular values do. As in the authors' code it is the mean of |P^T P - 1| and |Q Q^T - 1| over all maps (1 the
identity), where the paper has the sum of their squares.

After every update, until the last reallocation, each weight w with gradient g has two averages (beta 0.85 both):

    sensitivity    I <- beta I + (1 - beta) |w g|
    uncertainty    U <- beta U + (1 - beta) ||w g| - I|

and a triple of a column of P, a number of L and a row of Q is worth S = e(L) + mean e(P) + mean e(Q), with e = I U. Every few steps the b
best triples of the whole model are kept and the L of the others is set to zero; they may come back until the last time. b falls from all
triples to `rank` for each map with the cube of the time that is left, from the end of the warm-up to the start of the final part.

A trainer adds the gradient of `penalty` once to each step's, and calls `after_update` when the weights are updated and the gradients are
still there. All state is in buffers, so a checkpoint has it.

Shapes: I inputs, O outputs, R rank at the start.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import adapted
from luyen.adapters.lora import LoRALinear, low_rank
from luyen.adapters.targets import targets
from luyen.core.errors import ConfigError

BETA = 0.85
"""How much of each average stays at an update; the authors' choice for both."""
FACTORS = ("lora_A", "lora_E", "lora_B")


class AdaLoRALinear(LoRALinear):
    """A frozen linear map with a trained change of low rank, which triples leave."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        # One axis, so that no optimizer takes it for a matrix; PEFT's files hold (R, 1).
        self.lora_E = nn.Parameter(self.lora_A.new_zeros(rank))
        nn.init.normal_(self.lora_A, std=0.02)
        nn.init.normal_(self.lora_B, std=0.02)
        self.kept: Tensor
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool, device=self.lora_A.device))
        for name in FACTORS:
            self.register_buffer(f"{name}_sensitivity", torch.zeros_like(getattr(self, name)))
            self.register_buffer(f"{name}_uncertainty", torch.zeros_like(getattr(self, name)))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(L Q, P)."""
        return self.lora_A * self.lora_E[:, None], self.lora_B

    def worth(self) -> Tensor:
        """S of every triple, (R)."""
        q_RI, l_R, p_OR = (cast(Tensor, getattr(self, f"{name}_sensitivity")) * getattr(self, f"{name}_uncertainty") for name in FACTORS)
        worth_R: Tensor = l_R + q_RI.mean(1) + p_OR.mean(0)
        return worth_R


def adalora(model: nn.Module, config: AdapterConfig) -> None:
    """Put AdaLoRA on the targets of a frozen model. ConfigError for settings that go against moving ranks."""
    start = start_rank(config)
    if start <= config.rank:
        raise ConfigError("adapter.allocation.start_rank", found=start, expected=f"more than adapter.rank, which is {config.rank}")
    if config.lora.ranks:
        raise ConfigError("adapter.lora.ranks", found="ranks by pattern", expected="none with adalora, which finds them itself")
    if config.lora.init != "default":
        raise ConfigError("adapter.lora.init", found=config.lora.init, expected="default with adalora, whose start is its own")
    for name in targets(model, config.targets):
        module = model.get_submodule(name)
        smaller = min(cast(int, module.in_features), cast(int, module.out_features))
        if start > smaller:
            raise ConfigError("adapter.allocation.start_rank", found=f"{start} for {name}", expected=f"at most {smaller}, its smaller side",
                              fix="Set a smaller one, a smaller rank, or other targets.")  # fmt: skip
    low_rank(model, config.model_copy(update={"rank": start}), AdaLoRALinear)


def start_rank(config: AdapterConfig) -> int:
    """Rank of every map at the start."""
    return config.allocation.start_rank or (3 * config.rank + 1) // 2


def penalty(model: nn.Module, config: AdapterConfig) -> Tensor:
    """What a step's mean loss is to grow by, a number with its graph: the weighted distance of P and Q from orthogonal."""
    distances: list[Tensor] = []
    for module in _modules(model):
        with torch.autocast(module.lora_A.device.type, enabled=False):
            for gram_RR in (module.lora_A @ module.lora_A.T, module.lora_B.T @ module.lora_B):
                distances.append(torch.linalg.vector_norm(gram_RR - torch.eye(module.rank).to(gram_RR)))
    return torch.stack(distances).mean() * config.allocation.orthogonality


@torch.no_grad()
def after_update(model: nn.Module, config: AdapterConfig, step: int, steps: int) -> None:
    """Follow what matters, and move ranks where it is time to: after update number `step` (from 1) of `steps`, gradients still there."""
    modules = _modules(model)
    last = steps - round(config.allocation.final_fraction * steps)
    if step < last:
        _follow(modules)
    elif step > last:
        for module in modules:
            module.lora_E.masked_fill_(~module.kept, 0.0)
    count = budget(config, len(modules), step, steps)
    if count is not None:
        _keep(modules, count)


def budget(config: AdapterConfig, maps: int, step: int, steps: int) -> int | None:
    """Triples of all maps that are to be kept after this update; None where nothing is to be moved."""
    chosen = config.allocation
    first, last = round(chosen.warmup_fraction * steps), steps - round(chosen.final_fraction * steps)
    start, end = start_rank(config) * maps, config.rank * maps
    if step == last:
        return end
    if step > last or step <= first or step % chosen.every_steps:
        return None
    left = 1 - (step - first) / (last - first)
    return int(end + (start - end) * left**3)


def ranks(model: nn.Module) -> dict[str, int]:
    """How many triples each map has kept, by name."""
    return {name: int(module.kept.sum()) for name, module in adapted(model) if isinstance(module, AdaLoRALinear)}


def _modules(model: nn.Module) -> list[AdaLoRALinear]:
    return [module for _, module in adapted(model) if isinstance(module, AdaLoRALinear)]


def _follow(modules: list[AdaLoRALinear]) -> None:
    """Both averages of every weight. One without a gradient in this step counts as one with a gradient of zero."""
    weights = [cast(nn.Parameter, getattr(module, name)) for module in modules for name in FACTORS]
    sensitivities = [cast(Tensor, getattr(module, f"{name}_sensitivity")) for module in modules for name in FACTORS]
    uncertainties = [cast(Tensor, getattr(module, f"{name}_uncertainty")) for module in modules for name in FACTORS]
    now = [torch.zeros_like(weight) if weight.grad is None else (weight * weight.grad).abs_() for weight in weights]
    torch._foreach_mul_(sensitivities, BETA)
    torch._foreach_add_(sensitivities, now, alpha=1 - BETA)
    torch._foreach_sub_(now, sensitivities)
    torch._foreach_abs_(now)
    torch._foreach_mul_(uncertainties, BETA)
    torch._foreach_add_(uncertainties, now, alpha=1 - BETA)


def _keep(modules: list[AdaLoRALinear], count: int) -> None:
    """Keep the `count` triples of all that are worth most, of equal ones the first, and set the L of the others to zero."""
    worth = torch.cat([module.worth() for module in modules])
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept[worth.argsort(descending=True, stable=True)[:count]] = True
    for module, own in zip(modules, torch.split(kept, [module.rank for module in modules]), strict=True):
        module.kept.copy_(own)
        module.lora_E.masked_fill_(~own, 0.0)
