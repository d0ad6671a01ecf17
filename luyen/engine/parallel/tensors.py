"""Between a tensor that is split over ranks (torch's DTensor) and the same tensor in whole. Plain tensors pass unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Partial
from torch.optim import Optimizer

from luyen.core import distributed


def local(tensor: Tensor) -> Tensor:
    """This rank's part; it shares memory with `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor  # type: ignore[no-any-return]


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. Every rank of its mesh calls this."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()  # type: ignore[no-any-return]


def whole_on_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors in whole for the main process, on the CPU where they were split; {} for the others. Every rank calls this."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if distributed.is_main():
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return found


def part_like(full: Tensor, like: Tensor) -> Tensor:
    """`full` split as `like` is when they have the same shape, else whole; on the device of `like`. Ranks do not talk for it."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full.to(like.device)
    mesh, everywhere = like.device_mesh, [Replicate()] * like.device_mesh.ndim
    split = DTensor.from_local(full.to(like.device), mesh, everywhere, run_check=False)
    return split.redistribute(mesh, like.placements)  # type: ignore[no-any-return]


def norm(gradients: Iterable[Tensor]) -> float:
    """Euclidean norm of all gradients together, those that are split over ranks in whole. Every rank calls this."""
    squares: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for gradient in gradients:
        groups: tuple[dist.ProcessGroup, ...] = ()
        if isinstance(gradient, DTensor):
            assert not any(isinstance(placement, Partial) for placement in gradient.placements), "a gradient is not summed yet"
            mesh = gradient.device_mesh
            groups = tuple(mesh.get_group(axis) for axis, placement in enumerate(gradient.placements) if not placement.is_replicate())
        squares.setdefault(groups, []).append(local(gradient))
    total = 0.0
    for groups, parts in squares.items():
        square = torch.stack(torch._foreach_norm(parts)).float().square().sum()
        for group in groups:
            dist.all_reduce(square, group=group)
        total += float(square)
    return total**0.5


def separate(optimizers: Iterable[Optimizer]) -> None:
    """Split the optimizers' groups so that each holds tensors of one layout: their fused updates take no mixture."""
    for optimizer in optimizers:
        groups = []
        for group in optimizer.param_groups:
            by_layout: dict[object, list[Tensor]] = {}
            for parameter in group["params"]:
                key = parameter.device_mesh if isinstance(parameter, DTensor) else None
                by_layout.setdefault(key, []).append(parameter)
            groups += [{**group, "params": parameters} for parameters in by_layout.values()]
        optimizer.param_groups[:] = groups
