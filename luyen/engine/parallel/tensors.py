"""Between a tensor that is split over ranks (torch's DTensor) and the same tensor in whole. Plain tensors pass unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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


def each_on_main(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | None]]:
    """Every tensor that any process has, in order of names; in whole for the main process, on the CPU where it was split or elsewhere.

    Others get None. Every rank calls this. Ranks of a pipeline have other names each; a tensor comes from the first rank that has it.
    """
    listed = distributed.gather({name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()})
    for name in sorted({name for names in listed for name in names}):
        owner = next(rank for rank, names in enumerate(listed) if name in names)
        full = whole(tensors[name]) if name in tensors else None
        if owner and distributed.rank() == owner:
            assert full is not None
            dist.send(full.cpu().contiguous(), 0)
        if distributed.is_main() and full is None:
            dtype, shape = listed[owner][name]
            full = torch.empty(shape, dtype=getattr(torch, dtype))
            dist.recv(full, owner)
        elif full is not None and isinstance(tensors[name], DTensor):
            full = full.cpu()
        yield name, full if distributed.is_main() else None


def whole_on_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of all processes in whole for the main process, by name as `each_on_main`; {} for the others. Every rank calls this."""
    return {name: tensor for name, tensor in each_on_main(tensors) if tensor is not None}


def part_like(full: Tensor, like: Tensor) -> Tensor:
    """`full` split as `like` is when they have the same shape, else whole; on the device of `like`. Ranks do not talk for it."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full.to(like.device)
    mesh, everywhere = like.device_mesh, [Replicate()] * like.device_mesh.ndim
    split = DTensor.from_local(full.to(like.device), mesh, everywhere, run_check=False)
    # torch brings the parts of a mesh of GPUs to a GPU; `like` may lie on the host.
    return split.redistribute(mesh, like.placements).to(like.device)  # type: ignore[no-any-return]


def norm(gradients: Iterable[Tensor], others: dist.ProcessGroup | None = None) -> float:
    """Euclidean norm of all gradients together, those that are split over ranks in whole, and with those that `others` have.

    Every rank calls this.
    """
    squares: dict[tuple[tuple[dist.ProcessGroup, ...], torch.device, str], list[Tensor]] = {}
    for gradient in gradients:
        groups: tuple[dist.ProcessGroup, ...] = ()
        meet = gradient.device.type  # where the ranks add up: slices may lie on the host of a mesh of GPUs
        if isinstance(gradient, DTensor):
            assert not any(isinstance(placement, Partial) for placement in gradient.placements), "a gradient is not summed yet"
            mesh = gradient.device_mesh
            meet = mesh.device_type
            groups = tuple(mesh.get_group(axis) for axis, placement in enumerate(gradient.placements) if not placement.is_replicate())
        squares.setdefault((groups, gradient.device, meet), []).append(local(gradient))
    total = 0.0
    for (groups, _, meet), parts in squares.items():
        square = torch.stack(torch._foreach_norm(parts)).float().square().sum().to(meet)
        for group in groups:
            dist.all_reduce(square, group=group)
        total += float(square)
    if others is not None:
        device = next((part.device for parts in squares.values() for part in parts), torch.device("cpu"))
        square = torch.tensor(total, dtype=torch.float64, device=device)
        dist.all_reduce(square, group=others)
        total = float(square)
    return total**0.5


def separate(optimizers: Iterable[Optimizer]) -> None:
    """Split the optimizers' groups so that each holds tensors of one layout and device: their fused updates take no mixture."""
    for optimizer in optimizers:
        groups = []
        for group in optimizer.param_groups:
            by_layout: dict[object, list[Tensor]] = {}
            for parameter in group["params"]:
                key = (parameter.device_mesh if isinstance(parameter, DTensor) else None, parameter.device)
                by_layout.setdefault(key, []).append(parameter)
            groups += [{**group, "params": parameters} for parameters in by_layout.values()]
        optimizer.param_groups[:] = groups
