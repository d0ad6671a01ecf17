"""Activation checkpointing as a transform: compute a layer's inside again in the backward pass instead of keeping it.

Chen et al., 2016, arXiv:1604.06174; which part is worth keeping: Korthikanti et al., 2022, arXiv:2205.05198, section 5. The layers are the
entries of the module's lists (`nn.ModuleList`). `offload` keeps everything and brings it to the host's memory until then (Rhu et al., 2016,
arXiv:1602.08124). `full` keeps what enters a layer and computes all the rest again; `selective` leaves the layer as it is but for what
costs little beside its memory: norms, the gated product and the probabilities of attention in blocks, which say themselves how they are
made (models/cheap.py). Parameter names do not change.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from luyen.core.errors import ConfigError
from luyen.engine.layers import wrapped
from luyen.models.cheap import Make, told_to

Activations = Literal["none", "selective", "full", "offload"]


def check_offload(mode: Activations, device: torch.device) -> None:
    """Raise ConfigError where activations lie in the host's memory already."""
    if mode == "offload" and device.type == "cpu":
        fix = "Set train.activations to one of these."
        raise ConfigError("train.activations", found="offload with device cpu", expected="none, selective or full", fix=fix)


@contextlib.contextmanager
def recomputed(module: nn.Module, mode: Activations) -> Iterator[None]:
    """Within the block every layer of `module` is computed again in the backward pass, in whole or where that costs little.

    Or what it keeps is brought to the host. Raises ConfigError when the module has no list of layers.
    """
    if mode == "none":
        yield
        return
    way = {"full": _recompute, "selective": _remake, "offload": _offload}[mode]
    with wrapped(module, lambda forward: functools.partial(way, forward), "train.activations", found=mode, expected="none"):
        yield


def _recompute(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(forward, *arguments, use_reentrant=False, **keywords)


def _remake(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    outputs = CheapOutputs()
    with told_to(outputs.add), saved_tensors_hooks(outputs.pack, CheapOutputs.unpack):
        return forward(*arguments, **keywords)


@dataclass
class _Way:
    """How one output is made, and the output while the backward pass reads it."""

    make: Make
    inputs: tuple[Any, ...]
    versions: tuple[int, ...]
    """Of the inputs that are tensors: what is made of one that was written to since would be something else."""
    autocast: torch.autocast
    """As it was when the output was made; the backward pass has none."""
    readers: int = 0
    made: Tensor | None = None

    def output(self) -> Tensor:
        """The output again. Raises RuntimeError, as autograd does, when an input is no longer what it was."""
        if self.made is None:
            if self.versions != _versions(self.inputs):
                raise RuntimeError(f"what {self.make.__name__} read was written over before the backward pass that makes its output again")
            with torch.no_grad(), self.autocast:
                self.made = self.make(*self.inputs)
        return self.made


def _versions(inputs: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(each._version for each in inputs if isinstance(each, Tensor))


@dataclass(frozen=True)
class _View:
    """What was to be kept, as a view of an output that can be made again."""

    way: _Way
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class CheapOutputs:
    """What one pass of a layer need not keep: outputs that are made again when the backward pass first reads them, once for all readers."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, _Way]] = {}
        """By the place in memory: the output, its version and its way. Once the output is gone the place may be another's."""

    def add(self, output: Tensor, make: Make, inputs: tuple[Any, ...]) -> None:
        """Remember how an output is made. One that is empty, of a special kind (DTensor) or not in one piece is kept as usual."""
        if type(output) is Tensor and output.is_contiguous() and output.numel():
            device = output.device.type
            autocast = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            place = output.untyped_storage().data_ptr()
            values = tuple(each.detach() if isinstance(each, Tensor) else each for each in inputs)
            self._known[place] = (weakref.ref(output), output._version, _Way(make, values, _versions(values), autocast))

    def pack(self, tensor: Tensor) -> Tensor | _View:
        """The way to a known output that nobody has written to since, any other tensor as it is."""
        if type(tensor) is not Tensor:
            return tensor
        reference, version, way = self._known.get(tensor.untyped_storage().data_ptr(), (lambda: None, 0, None))
        output = reference()
        if way is None or output is None or (tensor._version, tensor.dtype) != (version, output.dtype):
            return tensor
        way.readers += 1
        return _View(way, tensor.size(), tensor.stride(), tensor.storage_offset())

    @staticmethod
    def unpack(packed: Tensor | _View) -> Tensor:
        """The tensor that was packed, to the bit."""
        if isinstance(packed, Tensor):
            return packed
        way = packed.way
        made = way.output()
        way.readers -= 1
        if way.readers <= 0:
            way.made = None
        return made.as_strided(packed.size, packed.stride, packed.offset)


def _offload(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    copies = HostCopies()
    with saved_tensors_hooks(copies.pack, HostCopies.unpack):
        output = forward(*arguments, **keywords)
    copies.seen.clear()
    return output


class HostCopies:
    """What one pass of a layer keeps, in the host's memory, each tensor once however many operators keep it.

    Weights are there anyway and stay where they are. Copies from and to a GPU are in the order of its other work, so nobody waits for
    them; torch.autograd.graph.save_on_cpu would bring weights too, and a tensor once for every operator.
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        """Each tensor, held so that its place is not another's while the layer runs, and its copy."""

    def pack(self, tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        """The tensor itself if it is a weight or of a special kind, else its device and its copy."""
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter) or type(tensor) is not Tensor:
            return tensor
        key = (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride())
        if key not in self.seen:
            source = tensor.detach()
            copy = torch.empty_like(source, device="cpu", pin_memory=source.device.type == "cuda")
            self.seen[key] = (source, copy.copy_(source, non_blocking=True))
        return tensor.device, self.seen[key][1]

    @staticmethod
    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        """The tensor on its device again."""
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)
