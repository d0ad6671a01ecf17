"""Weights laid out once for many small products, as a decoding step makes them on a CPU.

A product of a few rows is short beside what the library does to the weight before it: it copies the weight into the order that its kernel
reads, in every call. Within `packed` that copy is made once (oneDNN's packed weights) and every step reads it. The numbers are those of
`functional.linear` up to rounding. Products of one row read the weight once as it lies, and those of many rows do not notice the copy:
both go the usual way. The change of a low-rank adapter is added to the weight before it is copied, which spares its products too.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from luyen.adapters.dora import DoRALinear
from luyen.adapters.lora import LoRALinear
from luyen.core import host_memory
from luyen.models.transformer import Transformer

FEWEST_ROWS, MOST_ROWS = 2, 256
"""Rows of the products that gain by it."""
FEWEST_STEPS = 8
"""Steps that pay for the copy."""
SMALLEST = 1 << 16
"""Fewest numbers in a weight: below, the product is shorter than the call."""
MEMORY_SHARE = 0.125
"""Most of the machine's memory that the copies may take; where they would take more nothing is packed."""
DTYPES = (torch.float32, torch.bfloat16)

Apply = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def packed(model: Transformer, rows: int, steps: int) -> Iterator[None]:
    """Within the block, in which no weight may change, the model's larger maps and its head read packed copies of their weights.

    Only where that pays: on a CPU, for `steps` steps of about `rows` rows, plain maps that nothing else listens to. Elsewhere nothing is
    done. The copies go with the block.
    """
    maps = _maps(model) if FEWEST_ROWS <= rows <= MOST_ROWS and steps >= FEWEST_STEPS else []
    listens = "logits" in model.__dict__ or type(model).logits is not Transformer.logits
    head = bool(maps) and _packs(model.head_weight) and not listens
    sizes = [module.weight.nbytes if isinstance(module, nn.Linear) else module.dense().nbytes for module in maps]
    if sum(sizes) + head * model.head_weight.nbytes > MEMORY_SHARE * host_memory.total():
        maps, head = [], False
    changed: list[nn.Module] = []
    try:
        for module in maps:
            weight_OI, bias_O = (module.weight, module.bias) if isinstance(module, nn.Linear) else module.merged()
            module.__dict__["forward"] = _applied(weight_OI, bias_O, rows, module.forward)
            changed.append(module)
        if head:
            model.__dict__["logits"] = _applied(model.head_weight, None, rows, model.logits)
        yield
    finally:  # what the classes define stands again
        for each in changed:
            del each.__dict__["forward"]
        if head:
            del model.__dict__["logits"]


def available() -> bool:
    """Whether this torch has oneDNN, on the processors where this was measured."""
    return bool(torch.backends.mkldnn.is_available()) and platform.machine().lower() in ("x86_64", "amd64")  # type: ignore[no-untyped-call]


def _maps(model: Transformer) -> list[nn.Linear | LoRALinear]:
    """The linear maps whose products are made as they stand, and those with a low-rank change, which is added to the weight for it."""
    if not available() or torch.is_autocast_enabled("cpu"):
        return []
    found: dict[str, nn.Linear | LoRALinear] = {}
    for name, module in model.named_modules():
        inside = name.rpartition(".")[0] in found  # a map that is already packed with its change
        if inside or name == "lm_head" or "forward" in module.__dict__:
            continue
        if type(module) is nn.Linear and _packs(module.weight):
            found[name] = module
        elif type(module) in (LoRALinear, DoRALinear) and _merges(cast(LoRALinear, module)):
            found[name] = cast(LoRALinear, module)
    return list(found.values())


def _merges(module: LoRALinear) -> bool:
    """Whether its weight is there in numbers that a change can be added to without rounding anew, and nothing is dropped."""
    drops = module.training and module.dropout > 0
    return not drops and not module.compressed and module.dense().dtype == torch.float32 and _packs(module.dense())


def _packs(weight: Tensor) -> bool:
    """Whether it is a whole tensor of a type that can be packed, and large enough."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
    return plain and weight.dtype in DTYPES and weight.numel() >= SMALLEST


def _applied(weight_OI: Tensor, bias_O: Tensor | None, rows: int, usual: Apply) -> Apply:
    """The map by the packed weight for a few rows, else as ever."""
    copy = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), rows)

    def apply(states: Tensor) -> Tensor:
        if FEWEST_ROWS <= states.numel() // states.shape[-1] <= MOST_ROWS:
            output: Tensor = torch.ops.mkldnn._linear_pointwise(states, copy, bias_O, "none", [], "")
            return output
        return usual(states)

    return apply
