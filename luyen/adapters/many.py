"""Many adapters on one model, each sequence of a batch with its own (the idea of S-LoRA, Sheng et al., 2023, arXiv:2311.03285, section 3).

    y = x W^T + b + s_n x_n A_n^T B_n^T        for the tokens x_n of sequences with adapter n; those without one get x W^T + b alone

The large product is made once for all; each adapter's two narrow ones for its own tokens, which are gathered and added back. DoRA scales
its rows too: y = c_n (x (W + s B A)^T) + b.

    model = open_many("base", {"law": "runs/law/adapter", "style": "runs/style/adapter"})
    generate(model, prompts, ..., adapters=["law", None, "style"])
    with using(model, ["law", None, "style"]):      # of the first, second and third sequence
        model(tokens_BT)

A hook before the decoder's pass finds which sequence each token belongs to: its row, its place in a layout, or what a cache says
(`sequences`), from which generation drops the rows that have ended.

Shapes: B rows, T tokens of a row, N = B T, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from luyen.adapters import files
from luyen.adapters.config import LOW_RANK
from luyen.adapters.dora import DoRALinear
from luyen.adapters.linear import AdaptedLinear, adapted, replace_each
from luyen.adapters.lora import LoRALinear, product_dtype
from luyen.adapters.merge import Opened, open_adapter
from luyen.adapters.preamble import preamble_of
from luyen.core import manifest
from luyen.core.errors import ModelError, nearest
from luyen.models.attention import Cache, Layout
from luyen.models.moe import Experts
from luyen.models.transformer import Transformer


@runtime_checkable
class Numbered(Protocol):
    """A cache that knows which of the caller's sequences it holds."""

    sequences: Tensor
    """Number of the sequence of each row in a step, (B), or of each token of prompts, (T)."""


@dataclass(frozen=True)
class Part:
    """What an adapter adds to one map."""

    down_RI: Tensor
    up_OR: Tensor
    """With the scale in it."""
    share_O: Tensor | None = None
    """DoRA: what the rows are multiplied by."""

    def added(self, hidden: Tensor, plain: Tensor, bias: Tensor | None) -> Tensor:
        """What comes to the plain map's results of these tokens."""
        dtype = product_dtype(hidden)
        narrow = functional.linear(functional.linear(hidden.to(dtype), self.down_RI.to(dtype)), self.up_OR.to(dtype))
        if self.share_O is None:
            return narrow
        share_O = self.share_O.to(dtype)
        return narrow * share_O + (plain if bias is None else plain - bias) * (share_O - 1)


class Choice:
    """Which sequence has which adapter, and in the pass under way which tokens."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """All adapters that the model carries."""
        self.sequences: list[str | None] | None = None
        """The adapter of each sequence; None: no adapters are used."""
        self.groups: list[tuple[str, Tensor | None]] = []
        """Adapters of this pass, each with the places of its tokens; None for all."""
        self.hook: RemovableHandle | None = None

    def place(self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """The hook before a pass."""
        self.groups = []
        if self.sequences is None:
            return
        numbers_N = _numbers(*arguments, **keywords)
        count = int(numbers_N.max()) + 1
        if count > len(self.sequences):
            raise ModelError("adapters for a batch", found=f"{len(self.sequences)} names for {count} sequences",
                             expected="one name, or None, for each", fix="Give as many names as sequences.")  # fmt: skip
        used = list(dict.fromkeys(name for name in self.sequences if name is not None))
        lookup = torch.tensor([-1 if name is None else used.index(name) for name in self.sequences], device=numbers_N.device)
        chosen_N = lookup[numbers_N]
        for index, name in enumerate(used):
            places = (chosen_N == index).nonzero()[:, 0]
            if len(places):
                self.groups.append((name, None if len(places) == len(chosen_N) else places))


def _numbers(tokens_BT: Tensor, layout: Layout | None = None, cache: Cache | None = None) -> Tensor:
    """The sequence of every token, (N)."""
    rows, length = tokens_BT.shape
    device = tokens_BT.device
    if cache is not None:
        if not isinstance(cache, Numbered):
            raise ModelError(f"{type(cache).__name__} does not say which sequences it holds", expected="a cache with `sequences`")
        held = cache.sequences
        return held if len(held) == rows * length else held.repeat_interleave(length)
    if layout is not None:
        return torch.arange(len(layout.lengths), device=device).repeat_interleave(torch.tensor(layout.lengths, device=device))
    return torch.arange(rows, device=device).repeat_interleave(length)


class ManyLinear(AdaptedLinear):
    """A frozen linear map and what each adapter adds to it. The parts are no parameters, so the model's own names and files stay."""

    def __init__(self, base: nn.Module, choice: Choice) -> None:
        super().__init__(base)
        self.choice = choice
        self.parts: dict[str, Part] = {}

    def forward(self, hidden: Tensor) -> Tensor:
        """The map's own results, and for the tokens of each adapter what it adds."""
        whole: Tensor = self.base(hidden)
        for name, places in self.choice.groups:
            part = self.parts.get(name)
            if part is None:
                continue
            if places is None:
                whole = whole + part.added(hidden, whole, self.bias)
                continue
            flat_NI, plain_NO = hidden.flatten(0, -2), whole.flatten(0, -2)
            added = part.added(flat_NI[places], plain_NO[places], self.bias)
            whole = plain_NO.index_add(0, places, added.to(plain_NO.dtype)).view_as(whole)
        return whole


def open_many(
    base: str | Path, folders: Mapping[str, str | Path], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """A base from its folder or hub name, once, and on it the adapters of the folders under their names; none is in use.

    It is held in the bits that the adapters were trained on; a base that is itself an adapter is merged into its own. Raises ModelError
    for adapters that `carry` refuses or that were trained on different bits.
    """
    found = {name: located(folder) for name, folder in folders.items()}
    for folder in found.values():
        _check_method(folder)
    sealed = {name: folder for name, folder in found.items() if (folder / manifest.MANIFEST).is_file()}
    model = files.open_base(base, _bits(sealed), device, dtype)
    digest = files.weights_digest(base) if sealed else None
    for name, folder in found.items():
        carry(model, name, folder, digest)
    return model.eval()


def located(folder: str | Path) -> Path:
    """The folder of an adapter by its name, that of a stage or of the hub. ModelError where there is none."""
    found = files.locate(folder)
    if found is None:
        raise ModelError(f"{folder} is not an adapter", expected=f"a folder with {files.CONFIG} and {files.WEIGHTS}",
                         fix="A whole model is opened alone.")  # fmt: skip
    return found


def _bits(sealed: Mapping[str, Path]) -> Mapping[str, Any] | None:
    """How these adapters want their base held. (One that was not written here does not tell, and takes what the others say.)"""
    told = {name: files.quantization(folder) for name, folder in sealed.items()}
    if any(bits != next(iter(told.values())) for bits in told.values()):
        found = ", ".join(f"{name} on {'numbers' if bits is None else bits['kind']}" for name, bits in told.items())
        raise ModelError("adapters that were trained on different bits share no base", found=found, fix="Open those of one kind together.")
    return next(iter(told.values()), None)


def _check_method(folder: str | Path) -> None:
    method = files.read_config(folder).method
    if method not in LOW_RANK:
        raise ModelError(f"the adapter {folder} cannot be used beside others", found=f"the method {method}",
                         expected=" or ".join(LOW_RANK), fix="Open it alone, in the place of a model.")  # fmt: skip


def carry(model: nn.Module, name: str, folder: str | Path, digest: str | None = None) -> None:
    """Take up the adapter of a folder under a name, beside those that the model carries; its weights stay plain.

    Raises ModelError for an adapter of another base, for methods other than LoRA and its kin, and where more is trained beside it.
    """
    if preamble_of(model):
        raise ModelError("a model with learned positions carries no further adapters", fix="Open its base without them.")
    choice = _choice(model) or Choice()
    if name in choice.names:
        raise ModelError(f"the model carries an adapter {name} already", fix="Drop it first, or choose another name.")
    _check_method(folder)
    with _plain(model):
        opened = open_adapter(model, folder, digest)
    if problem := _not_mixed(model, opened):
        raise ModelError(f"the adapter {folder} cannot be used beside others", found=problem, expected="a change of low rank alone",
                         fix="Open it alone, in the place of a model.")  # fmt: skip
    present = {key for key, module in adapted(model) if isinstance(module, ManyLinear)}
    replace_each(model, [key for key in opened.maps if key not in present], lambda _, base: ManyLinear(base, choice))
    for key, module in opened.maps.items():
        cast(ManyLinear, model.get_submodule(key)).parts[name] = _part(cast(LoRALinear, module))
    if not choice.names:
        choice.hook = model.register_forward_pre_hook(choice.place, with_kwargs=True)
    choice.names.append(name)


def _not_mixed(model: nn.Module, opened: Opened) -> str:
    """What of an adapter cannot differ from sequence to sequence; "" for nothing."""
    both = [f"{key}.weight" for key, module in opened.maps.items() if cast(LoRALinear, module).trained_too()]
    if trained := [*opened.whole, *both]:
        return f"parameters trained in whole, such as {min(trained)}"
    experts = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    routed = [key for key in opened.maps if any(key.startswith(f"{name}.") for name in experts)]
    return f"a change of {routed[0]}, to which a router sends tokens of all sequences" if routed else ""


@torch.no_grad()
def _part(module: LoRALinear) -> Part:
    a_RI, b_OR = module.factors()
    share_O = None
    if isinstance(module, DoRALinear):
        lengths_O = torch.linalg.vector_norm(module.changed(), dim=1)
        share_O = torch.where(lengths_O > 0, module.lora_magnitude_vector / lengths_O, 1.0)
    return Part(a_RI.detach().clone(), b_OR.detach() * module.scale, share_O)


def drop(model: nn.Module, name: str) -> None:
    """Forget an adapter; with the last one the model is as it was before. ModelError where it carries none of that name."""
    choice = _known(model, [name])
    choice.names.remove(name)
    empty = []
    for key, module in adapted(model):
        if isinstance(module, ManyLinear):
            module.parts.pop(name, None)
            empty += [] if module.parts else [key]
    bases = {key: cast(ManyLinear, model.get_submodule(key)).base for key in empty}
    replace_each(model, empty, lambda key, _: bases[key])
    if not choice.names and choice.hook is not None:
        choice.hook.remove()


def carried(model: nn.Module) -> list[str]:
    """Names of the adapters that a model carries."""
    choice = _choice(model)
    return [] if choice is None else list(choice.names)


@contextlib.contextmanager
def using(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Within the block sequence i of every batch has the adapter names[i], or none. ModelError for a name that is not carried."""
    choice = _known(model, [name for name in names if name is not None])
    before, choice.sequences = choice.sequences, list(names)
    try:
        yield
    finally:
        choice.sequences, choice.groups = before, []


def _choice(model: nn.Module) -> Choice | None:
    return next((module.choice for _, module in adapted(model) if isinstance(module, ManyLinear)), None)


def _known(model: nn.Module, names: Sequence[str]) -> Choice:
    choice = _choice(model) or Choice()
    for name in names:
        if name not in choice.names:
            raise ModelError(f"the model carries no adapter {name!r}", fix=nearest(name, choice.names) if choice.names else "")
    return choice


@contextlib.contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """The model without what it carries."""
    taken = {key: module for key, module in adapted(model) if isinstance(module, ManyLinear)}
    replace_each(model, list(taken), lambda key, _: taken[key].base)
    try:
        yield
    finally:
        replace_each(model, list(taken), lambda key, _: taken[key])
