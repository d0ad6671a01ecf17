"""What of a model and its optimizers a checkpoint holds, as tensors by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from luyen.core import distributed
from luyen.engine.parallel.tensors import each_on_main

NUMBER = ":number"
"""Ends the name of an optimizer's Python number."""


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters (a shared one once) and persistent buffers by name; they share memory with the model."""
    once = {name for name, parameter in model.named_parameters() if parameter.requires_grad} | {name for name, _ in model.named_buffers()}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in once}


def frozen_fingerprint(model: nn.Module) -> str | None:
    """sha256 (hex) over names, types, shapes and bits of the parameters that are not trained; None when all are.

    Costs about a second per GB, so a run computes it once.
    """
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if not any(distributed.gather(bool(found))):
        return None
    digest = hashlib.sha256()
    for name, tensor in each_on_main(found):
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return str(distributed.gather(digest.hexdigest())[0])


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """All state of the optimizers as tensors named `parameter:key`; Python's numbers as `parameter:key:number`, in 64 bits."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                name = f"{names[id(parameter)]}:{key}"
                if isinstance(value, Tensor):
                    found[name] = value
                else:
                    found[f"{name}{NUMBER}"] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return found
