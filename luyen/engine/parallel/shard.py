"""Sharded data parallelism (FSDP2, torch.distributed.fsdp.fully_shard; Zhao et al., 2023, arXiv:2304.11277; ZeRO-3, arXiv:1910.02054).

Every rank keeps a slice of each parameter, its gradient and its optimizer state. A layer's weights are gathered before it computes and
dropped after it; its gradient is summed and sliced as soon as it is there. What stands outside the lists of layers (embedding, final norm,
head) is one more unit that stays gathered from the forward to the backward pass, because the loss uses the head after `forward`.
With data > 1 as well the slices are repeated `data` times (hybrid sharding).
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from luyen.engine.parallel.mesh import Shape


def shard(model: nn.Module, mesh: DeviceMesh, shape: Shape) -> None:
    """Slice `model` in place: every layer of its lists is a unit, the rest another. Gradients are summed over ranks, not averaged."""
    ranks = mesh["data", "shard"] if shape.data > 1 else mesh["shard"]

    def axis(parameter: nn.Parameter) -> Shard | None:
        """A matrix whose rows are dealt by tensor parallelism already is sliced by columns where they divide; others by rows."""
        rows_dealt = isinstance(parameter, DTensor) and parameter.placements[0] == Shard(0)
        return Shard(1) if rows_dealt and parameter.ndim == 2 and parameter.shape[1] % shape.shard == 0 else None

    for layers in (module for module in list(model.modules()) if isinstance(module, nn.ModuleList)):
        for layer in (layer for layer in layers if next(layer.parameters(), None) is not None):  # others lie in another stage of a pipeline
            fully_shard(layer, mesh=ranks, reshard_after_forward=True, shard_placement_fn=axis)
    fully_shard(model, mesh=ranks, reshard_after_forward=False, shard_placement_fn=axis)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # only the engine divides, by the count over all ranks
            module.set_force_sum_reduction_for_comms(True)
    if shape.pipeline > 1 and isinstance(model, FSDPModule):
        # The loss of a micro-batch reads the head after another's backward pass, so it stays gathered until `settle` after the step.
        model.set_reshard_after_backward(False, recurse=False)


def make_room(model: nn.Module) -> None:
    """Gather every unit once and drop it. torch keeps the tensors that it gathers into, and evaluations run in inference mode: tensors
    that are made there can never be trained on.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def settle(model: nn.Module) -> None:
    """Drop what a forward pass without backward left gathered, so that the parameters are the slices again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
