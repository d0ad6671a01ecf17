"""Adapters merged into the model's own weights, one or several, and the proof that the result computes the same.

What is combined is the change that each adapter makes to a weight, D_i = W_i - W, whatever made it: for LoRA s_i B_i A_i with each
adapter's own scale and rank, for DoRA and (IA)^3 the difference of the merged weight from the base. (Combining A's and B's instead, or
taking over one adapter's scale, gives another sum.)

linear   D = sum of w_i D_i; cat is its other name for low ranks: [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...], of the sum of the ranks
svd      the best approximation of that sum of a given rank (Eckart and Young, 1936)
ties     Yadav et al., 2023, arXiv:2306.01708, algorithm 1: of each D_i the largest share `density` stays; each entry takes the sign of the
         sum of the w_i D_i; D is the mean of those w_i D_i that have that sign. Trimmed tensor by tensor; equal w_i are the paper's lambda
dare     Yu et al., 2023, arXiv:2311.03099, equation 1: an entry of D_i stays with probability `density` and is divided by it; then linear

Changes in numbers are as large as the model. So each is made when it is asked for, tensor by tensor, and forgotten.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from luyen.adapters import files
from luyen.adapters.dora import DoRALinear
from luyen.adapters.linear import AdaptedLinear, adapted, replace_each
from luyen.adapters.lora import LoRALinear
from luyen.adapters.new_tokens import take_off, write_rows
from luyen.adapters.peft_names import ROWS, plain_name
from luyen.core.errors import ModelError
from luyen.core.seed import derive
from luyen.models.transformer import Transformer

How = Literal["linear", "cat", "svd", "ties", "dare"]
APART = ("bottleneck", "compacter", "p-tuning", "prefix", "prompt")
"""Methods that no plain weight computes."""


@dataclass(frozen=True)
class Plan:
    """How several adapters become one."""

    how: How = "linear"
    weights: tuple[float, ...] = ()
    """Factor of each adapter's change; none: 1 each."""
    density: float = 0.5
    rank: int = 0
    """svd: rank of the result; 0: the largest of the adapters'."""
    seed: int = 0


@dataclass(frozen=True)
class Change:
    """What is added to one tensor: numbers, or up (O, R) times down (R, I)."""

    numbers: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None

    def whole(self) -> Tensor:
        """In numbers, fp64."""
        if self.numbers is not None:
            return self.numbers.double()
        return self._factors()[0].double() @ self._factors()[1].double()

    def scaled(self, factor: float) -> Change:
        """Times a number."""
        if self.numbers is not None:
            return Change(self.numbers * factor)
        up, down = self._factors()
        return Change(up=up * factor, down=down)

    @property
    def rank(self) -> int | None:
        """Of the product; None in numbers."""
        return None if self.down is None else self.down.shape[0]

    def _factors(self) -> tuple[Tensor, Tensor]:
        return cast(Tensor, self.up), cast(Tensor, self.down)


def is_map(name: str, change: Change) -> bool:
    """Whether a change is that of a linear map in the layers, which may have a low rank."""
    return change.rank is not None or (change.numbers is not None and change.numbers.ndim == 2 and "layers." in name)


Changes = Mapping[str, Change]
"""By the tensor's name in the plain model."""


class OnDemand(Changes):
    """Changes of which each is made anew whenever it is asked for, so that those of one tensor alone are in memory."""

    def __init__(self, made: Mapping[str, Callable[[], Change]]) -> None:
        self.made = made

    @torch.no_grad()
    def __getitem__(self, name: str) -> Change:
        return self.made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)

    def __contains__(self, name: object) -> bool:
        return name in self.made


@dataclass(frozen=True)
class Opened:
    """An adapter that was taken off its model: its maps, and the other parameters that it trained in whole.

    The maps still hold the model's own, or a copy where the adapter trained that as well.
    """

    name: str
    maps: Mapping[str, AdaptedLinear]
    whole: Mapping[str, Tensor]


def open_adapter(plain: nn.Module, name: str | Path, digest: str | None) -> Opened:
    """An adapter for this model, which is left plain. ModelError where it is for another one or cannot be merged."""
    method = files.read_config(name).method
    if method in APART:
        raise ModelError(f"{name} cannot be merged: no weight computes what {method} does", fix="Keep the adapter beside the model.")
    state, _ = files.saved_state(name)
    rows = plain.config.vocab_size if isinstance(plain, Transformer) else 0
    changed = {f"{key.removesuffix(ROWS)}.weight" if key.endswith(ROWS) else key for key in state}
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items() if key in changed}
    try:
        files.load_into(plain, name, digest)
    except BaseException:
        _take_off(plain, before, rows)
        raise
    maps = {key: module.eval() for key, module in adapted(plain)}
    write_rows(plain)
    whole = {key: parameter.detach().clone() for key, parameter in _plain_parameters(plain) if key in before}
    both = {key for key in maps if f"{key}.weight" in whole}
    trained = {key: copy.deepcopy(maps[key].base) for key in both}
    _take_off(plain, before, rows)
    for key in both:
        maps[key].base = trained[key]
    return Opened(str(name), maps, {key: value for key, value in whole.items() if key.rpartition(".")[0] not in both})


def _take_off(model: nn.Module, before: Mapping[str, Tensor], rows: int) -> None:
    """The model as it was: its own maps, so many rows, the values that an adapter has changed, and nothing trained."""
    take_off(model, rows)
    _restore(model, before)
    maps = dict(adapted(model))
    replace_each(model, list(maps), lambda key, _: maps[key].base)
    model.requires_grad_(False)


def _plain_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((plain_name(name), parameter) for name, parameter in model.named_parameters())


@torch.no_grad()
def _restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in _plain_parameters(model):
        if name in values:
            parameter.copy_(values[name])


@torch.no_grad()
def changes(plain: nn.Module, opened: Opened) -> Changes:
    """What the adapter changes of the model, tensor by tensor."""
    own = dict(plain.state_dict())
    made = {name: partial(_of_tensor, tensor, own[name]) for name, tensor in opened.whole.items()}
    for name, module in opened.maps.items():
        base = plain.get_submodule(name)
        made[f"{name}.weight"] = partial(_of_weight, module, base)
        bias = _of_map(module, base)[1]
        if bias is not None:
            made[f"{name}.bias"] = partial(Change, bias)
    return OnDemand(made)


def _of_tensor(tensor: Tensor, own: Tensor) -> Change:
    return Change(tensor.double() - own.double())


def _of_weight(module: AdaptedLinear, base: nn.Module) -> Change:
    return _of_map(module, base)[0]


def _of_map(module: AdaptedLinear, base: nn.Module) -> tuple[Change, Tensor | None]:
    """Changes of weight and bias."""
    if isinstance(module, LoRALinear) and not isinstance(module, DoRALinear) and module.base is base:
        a_RI, b_OR = module.factors()
        return Change(up=b_OR.detach().double() * module.scale, down=a_RI.detach().double()), None
    own = AdaptedLinear(base)
    weight, bias = module.merged()
    added = Change(weight.double() - own.dense().double())
    if bias is None:
        return added, None
    return added, bias.double() - (own.bias.double() if own.bias is not None else 0.0)


def combine(all_changes: Sequence[Changes], plan: Plan) -> tuple[Changes, float]:
    """One change of each tensor from those of several adapters, and the share of it that svd has left out (Frobenius norms).

    All but the results of svd, which are small, are made when they are asked for.
    """
    weights = plan.weights or (1.0,) * len(all_changes)
    if len(weights) != len(all_changes):
        raise ModelError("weights", found=len(weights), expected=f"{len(all_changes)}, one for each adapter")
    names = dict.fromkeys(name for each in all_changes for name in each)
    made = {name: partial(_combined, name, all_changes, weights, plan) for name in names}
    lost = size = 0.0
    for name in names if plan.how == "svd" else ():
        change = made[name]()
        if is_map(name, change):
            nearest, left_out, whole = truncated(change, _rank(plan, [each[name] for each in all_changes if name in each]))
            made[name] = partial(replace, nearest)
            lost, size = lost + left_out, size + whole
    return OnDemand(made), (lost / size) ** 0.5 if size else 0.0


def _combined(name: str, all_changes: Sequence[Changes], weights: Sequence[float], plan: Plan) -> Change:
    """Of one tensor, from the adapters that change it."""
    present = {index: each[name] for index, each in enumerate(all_changes) if name in each}
    if plan.how == "ties":
        return _ties([change.whole() for change in present.values()], [weights[index] for index in present], plan.density)
    if plan.how == "dare":
        present = {index: _dropped(change, plan, index, name) for index, change in present.items()}
    return _sum([change.scaled(weights[index]) for index, change in present.items()])


def _rank(plan: Plan, present: Iterable[Change]) -> int:
    rank = plan.rank or max(change.rank or 0 for change in present)
    if not rank:
        raise ModelError("how=svd needs a rank where no adapter has one", fix="Set rank=, for example rank=16.")
    return rank


def _sum(parts: Sequence[Change]) -> Change:
    """Of low ranks one of the sum of the ranks, exactly; else in numbers."""
    if all(part.rank is not None for part in parts):
        return Change(
            up=torch.cat([cast(Tensor, part.up) for part in parts], 1), down=torch.cat([cast(Tensor, part.down) for part in parts])
        )
    return Change(torch.stack([part.whole() for part in parts]).sum(0))


def _ties(parts: Sequence[Tensor], weights: Sequence[float], density: float) -> Change:
    """Trim, elect, and the mean of those that agree."""
    stacked = torch.stack([_trimmed(part, density) * weight for part, weight in zip(parts, weights, strict=True)])
    sign = stacked.sum(0).sign()
    agree = (stacked.sign() == sign) & (sign != 0)
    return Change((stacked * agree).sum(0) / agree.sum(0).clamp_min(1))


def _trimmed(part: Tensor, density: float) -> Tensor:
    """With the share `density` of entries that are largest, of equal ones the first; zeros elsewhere."""
    sizes, count = part.abs().flatten(), round(density * part.numel())
    if count == 0:
        return torch.zeros_like(part)
    smallest = sizes.kthvalue(sizes.numel() - count + 1).values
    kept = sizes > smallest
    kept[(sizes == smallest).nonzero()[: count - int(kept.sum()), 0]] = True
    return part * kept.view_as(part)


def _dropped(change: Change, plan: Plan, index: int, name: str) -> Change:
    """Entries dropped at random and the others made larger. The draw depends on the seed, the adapter's place and the tensor's name."""
    whole = change.whole()
    generator = torch.Generator().manual_seed(derive(plan.seed, "dare", index, name))
    stay = torch.rand(whole.shape, generator=generator, dtype=torch.float64) < plan.density
    return Change(whole * stay / plan.density)


def truncated(change: Change, rank: int) -> tuple[Change, float, float]:
    """The nearest change of a rank, and the squared norms of what is left out and of the whole.

    The singular values of a product of narrow matrices are those of the product of their triangular parts, which is small.
    """
    if change.up is not None and change.down is not None and change.down.shape[0] < min(change.up.shape[0], change.down.shape[1]):
        left_OR, upper_RR = torch.linalg.qr(change.up)
        right_IR, lower_RR = torch.linalg.qr(change.down.T)
        u, values, v = torch.linalg.svd(upper_RR @ lower_RR.T)
        u, v = left_OR @ u, v @ right_IR.T
    else:
        u, values, v = torch.linalg.svd(change.whole(), full_matrices=False)
    root = values[:rank].sqrt()
    whole = float(values.square().sum())
    return Change(up=u[:, :rank] * root, down=root[:, None] * v[:rank]), float(values[rank:].square().sum()), whole


class Blend(nn.Module):
    """A map with several adapters that stay beside it: y = f(x) + sum of w_i (f_i(x) - f(x))."""

    def __init__(self, base: nn.Module, parts: Sequence[tuple[float, nn.Module]]) -> None:
        super().__init__()
        self.base, self.parts = base, parts

    def forward(self, hidden: Tensor) -> Tensor:
        if len(self.parts) == 1 and self.parts[0][0] == 1:
            alone: Tensor = self.parts[0][1](hidden)
            return alone
        plain: Tensor = self.base(hidden)
        added = [weight * (part(hidden) - plain) for weight, part in self.parts]
        return plain + torch.stack(added).sum(0)


class Beside(nn.Module):
    """A map with a change in numbers beside it, (O, I), which is made for each product."""

    def __init__(self, base: nn.Module, change: Callable[[], Tensor]) -> None:
        super().__init__()
        self.base, self.change = base, change

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.base(hidden) + nn.functional.linear(hidden, self.change())
        return added


@torch.no_grad()
def unmerged(plain: nn.Module, opened: Sequence[Opened], combined: Changes, plan: Plan, measure: Callable[[nn.Module], Tensor]) -> Tensor:
    """What `measure` gives for the model with everything beside its weights, which is left plain again.

    A sum of adapters is made of their own forward passes, which know nothing of the combination; other combinations have no other form.
    """
    weights = plan.weights or (1.0,) * len(opened)
    own = {name: plain.get_submodule(name) for each in opened for name in each.maps}
    beside: dict[str, list[tuple[float, nn.Module]]] = {name: [] for name in own}
    whole = dict.fromkeys(name for each in opened for name in each.whole if name.removesuffix(".weight") not in own)
    for weight, each in zip(weights, opened, strict=True):
        for name, module in each.maps.items():
            beside[name].append((weight, module))
        for name in own.keys() & {name.removesuffix(".weight") for name in each.whole}:
            trained = each.whole[f"{name}.weight"]
            beside[name].append((weight, Beside(own[name], partial(_difference, trained, own[name]))))

    def put(name: str, base: nn.Module) -> nn.Module:
        if plan.how in ("linear", "cat"):
            return Blend(base, beside[name])
        return Beside(base, lambda: combined[f"{name}.weight"].whole().float())

    before = {name: tensor.clone() for name, tensor in plain.state_dict().items() if name in whole}
    _restore(plain, {name: (tensor.double() + combined[name].whole()).to(tensor.dtype) for name, tensor in before.items()})
    replace_each(plain, list(own), put)
    found = measure(plain)
    replace_each(plain, list(own), lambda name, _: own[name])
    _restore(plain, before)
    return found


def _difference(trained: Tensor, base: nn.Module) -> Tensor:
    return trained - AdaptedLinear(base).dense()


@torch.no_grad()
def apply(model: nn.Module, combined: Changes, dtype: torch.dtype) -> None:
    """Add the changes to a model in numbers, in place, rounded to what will be stored. ModelError where a tensor has no place."""
    own = dict(model.named_parameters())
    for name in combined:
        if name not in own:
            raise ModelError(f"the merged model has a tensor {name}, and a file of this architecture has no place for it",
                             fix="Keep the adapter beside the model.")  # fmt: skip
        own[name].copy_((own[name].double() + combined[name].whole()).to(dtype))
