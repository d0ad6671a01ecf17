"""Sharded data parallelism (FSDP2, torch.distributed.fsdp.fully_shard; Zhao et al., 2023, arXiv:2304.11277; ZeRO-3, arXiv:1910.02054).

Every rank keeps a slice of each parameter, its gradient and its optimizer state. A layer's weights are gathered before it computes and
dropped after it; its gradient is summed and sliced as soon as it is there. What stands outside the lists of layers (embedding, final norm,
head) is one more unit that stays gathered from the forward to the backward pass, because the loss uses the head after `forward`.
With data > 1 as well the slices are repeated `data` times (hybrid sharding).

Layers may be gathered in half precision, so that what autograd keeps of a weight is the gathered one, which is dropped, and not a copy
that autocast made. Slices, the sums of gradients and the unit outside the layers, which losses, evaluations and caches read, stay fp32.
The slices of layers may lie in the host's memory (Ren et al., 2021, arXiv:2101.06840, section 4), where the optimizer then works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from luyen.engine.memory import give_back
from luyen.engine.parallel.mesh import Shape
from luyen.models.functions import rms_norm
from luyen.models.transformer import RMSNorm


def shard(model: nn.Module, mesh: DeviceMesh, shape: Shape, half: torch.dtype | None = None) -> None:
    """Slice `model` in place: every layer of its lists is a unit, the rest another. Gradients are summed over ranks, not averaged.

    `half` is the type in which layers are gathered; None: that of the slices.
    """
    precision = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)  # the residual path stays fp32
    # Pages that a GPU reads by itself must be pinned; a CPU has no use for them.
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if shape.offload else OffloadPolicy()
    ranks = mesh["data", "shard"] if shape.data > 1 else mesh["shard"]

    def axis(parameter: nn.Parameter) -> Shard | None:
        """A matrix whose rows are dealt by tensor parallelism already is sliced by columns where they divide; others by rows."""
        rows_dealt = isinstance(parameter, DTensor) and parameter.placements[0] == Shard(0)
        return Shard(1) if rows_dealt and parameter.ndim == 2 and parameter.shape[1] % shape.shard == 0 else None

    for layer in layers(model):
        fully_shard(layer, mesh=ranks, reshard_after_forward=True, shard_placement_fn=axis, mp_policy=precision, offload_policy=offload)
        if half:
            _take_any_type(layer)
    fully_shard(model, mesh=ranks, reshard_after_forward=False, shard_placement_fn=axis)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # only the engine divides, by the count over all ranks
            module.set_force_sum_reduction_for_comms(True)
    if shape.pipeline > 1 and isinstance(model, FSDPModule):
        # The loss of a micro-batch reads the head after another's backward pass, so it stays gathered until `settle` after the step.
        model.set_reshard_after_backward(False, recurse=False)


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers that lie here, which are units of their own; others lie in another stage of a pipeline."""
    listed = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    return [layer for layer in listed if next(layer.parameters(), None) is not None]


def _take_any_type(layer: nn.Module) -> None:
    """Let a layer whose weights come in half precision compute what it computes with fp32 weights: products in half, the rest in fp32.

    By other classes, as torch's sharding does it, since compiled code is shared by the modules of a class; where a rank has a part of the
    products that part is wrapped.
    """
    for module in layer.modules():
        if isinstance(module, nn.Linear) and "forward" in vars(module):
            module.forward = functools.partial(_product, module, module.forward)  # type: ignore[method-assign]
        elif isinstance(module, nn.Linear):
            module.__class__ = _of_any_type(type(module), _Product)
        elif isinstance(module, RMSNorm):
            module.__class__ = _of_any_type(type(module), _Norm)


@functools.cache
def _of_any_type(kind: type[nn.Module], first: type) -> type[nn.Module]:
    return type(f"{first.__name__}{kind.__name__}", (first, kind), {})


class _Product:
    """A linear map whose input may be of a wider type than its weight."""

    def forward(self, hidden: Tensor) -> Tensor:
        return _product(self, super().forward, hidden)  # type: ignore[arg-type, misc]


class _Norm:
    """A norm in the type of the hidden states, as a fused one wants its weight."""

    weight: Tensor
    eps: float

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight.to(hidden.dtype), self.eps)


def _product(linear: nn.Linear, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Autocast brings the input to the weight's type; evaluations are without it, and go on in the type they came in."""
    if torch.is_autocast_enabled(hidden.device.type):
        return forward(hidden)
    return forward(hidden.to(linear.weight.dtype)).to(hidden.dtype)


def make_room(model: nn.Module) -> None:
    """Gather every unit once and drop it. torch keeps the tensors that it gathers into, and evaluations run in inference mode: tensors
    that are made there can never be trained on. After each unit its memory goes back, so that on a CPU all units do not take it together.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
            give_back()


def settle(model: nn.Module) -> None:
    """Drop what a forward pass without backward left gathered, so that the parameters are the slices again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
