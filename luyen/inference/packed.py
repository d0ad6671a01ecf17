"""Weights laid out once for many small products, as a decoding step makes them on a CPU.

A product of a few rows is short beside what the library does to the weight before it: it copies the weight into the order that its kernel
reads, in every call. Within `packed` that copy is made once (oneDNN's packed weights) and every step reads it. The numbers are those of
`functional.linear` up to rounding. Products of one row read the weight once as it lies, and those of many rows do not notice the copy:
both go the usual way.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.core import host_memory
from luyen.models.transformer import Transformer

FEWEST_ROWS, MOST_ROWS = 2, 256
"""Rows of the products that gain by it."""
FEWEST_STEPS = 8
"""Steps that pay for the copy."""
SMALLEST = 1 << 18
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
    maps = _maps(model) if FEWEST_ROWS <= rows <= MOST_ROWS and steps >= FEWEST_STEPS else {}
    head = model.head_weight if maps and _packs(model.head_weight) and type(model).logits is Transformer.logits else None
    weights = [module.weight for module in maps.values()] + ([] if head is None else [head])
    if sum(weight.nbytes for weight in weights) > MEMORY_SHARE * host_memory.total():
        maps, head = {}, None
    changed: list[nn.Linear] = []
    try:
        for module in maps.values():
            module.__dict__["forward"] = _applied(module.weight, module.bias, rows)
            changed.append(module)
        if head is not None:
            model.__dict__["logits"] = _applied(head, None, rows)
        yield
    finally:  # what the classes define stands again
        for module in changed:
            del module.__dict__["forward"]
        model.__dict__.pop("logits", None)


def available() -> bool:
    """Whether this torch has oneDNN, on the processors where this was measured."""
    return bool(torch.backends.mkldnn.is_available()) and platform.machine().lower() in ("x86_64", "amd64")  # type: ignore[no-untyped-call]


def _maps(model: Transformer) -> dict[str, nn.Linear]:
    """The plain linear maps by name whose products are made as they stand."""
    if not available() or torch.is_autocast_enabled("cpu"):
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and "forward" not in module.__dict__ and _packs(module.weight) and name != "lm_head"
    }


def _packs(weight: Tensor) -> bool:
    """Whether it is a whole tensor of a type that can be packed, and large enough."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
    return plain and weight.dtype in DTYPES and weight.numel() >= SMALLEST


def _applied(weight_OI: Tensor, bias_O: Tensor | None, rows: int) -> Apply:
    """The map by the packed weight for a few rows, else as ever."""
    copy = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), rows)

    def apply(states: Tensor) -> Tensor:
        if FEWEST_ROWS <= states.numel() // states.shape[-1] <= MOST_ROWS:
            output: Tensor = torch.ops.mkldnn._linear_pointwise(states, copy, bias_O, "none", [], "")
            return output
        return functional.linear(states, weight_OI, bias_O)

    return apply
