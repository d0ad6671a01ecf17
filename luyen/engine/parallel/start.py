"""The start of a run: a model without memory (torch's meta device) is split, and only what a rank keeps is made and filled.

The main process has the whole model on the CPU, drawn or read as one process has it; the others have names and shapes. Each tensor is sent
to all in whole and every rank keeps its part, so the weights are those of one process to the bit, and beside its part a rank holds
one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luyen.core import distributed
from luyen.engine.parallel.tensors import local, part_like


def emptied(model: nn.Module) -> dict[str, Tensor]:
    """Turn all parameters of `model` to names and shapes. Returns the main process' tensors, buffers too, by name; {} for the others."""
    source = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    shapes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shape_only = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
                module._parameters[name] = shapes.setdefault(id(parameter), shape_only)
    return source if distributed.is_main() else {}


def fill(model: nn.Module, source: dict[str, Tensor], device: torch.device, on_host: Sequence[nn.Module] = ()) -> nn.Module:
    """Make the parameters and buffers that `model` has now, and fill them from `source`. All ranks call this.

    The parameters of the modules `on_host` are made in the host's memory, all else on the device.
    """
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    _make(model, device, {id(part) for module in on_host for part in module.modules()})
    for first, *others in shared.values():
        for name in others:
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner)._parameters[last] = model.get_parameter(first)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, tensor in distributed.from_main(source):
            if name in own:
                local(own[name]).copy_(local(part_like(tensor, own[name])))
    return model


def _make(model: nn.Module, device: torch.device, on_host: set[int]) -> None:
    """Memory for everything, children first: torch's sharding looks at a unit when the unit itself is made."""
    if not on_host:
        model.to_empty(device=device)
        return
    for module in reversed(list(model.modules())):
        module.to_empty(device="cpu" if id(module) in on_host else device, recurse=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device=device)
