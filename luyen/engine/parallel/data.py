"""Data parallelism: every rank holds the whole model and reads its share of the step's rows; gradients are summed once a step.

The gradient of a step is a sum over its rows, and the engine divides by a count that all ranks know, so any split gives the same
gradient. It is summed after the last micro-batch, in a few flat buffers: no wrapper around the module, no name changes, nothing to switch
off during accumulation, and the same for every model. What it gives up is the overlap with the backward pass that torch's DDP has; where
that matters (large models, several machines) `shard` overlaps both ways and needs less memory as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luyen.core.errors import ConfigError
from luyen.engine.parallel.tensors import local

BUFFER_NUMBERS = 1 << 24
"""Numbers that travel together: 64 MiB in fp32."""


def share_out(batches: Sequence[Any], reader: int, readers: int) -> list[Any]:
    """The part of a step's micro-batches that reader `reader` of `readers` works on; all get equally many.

    Whole micro-batches are dealt as far as their number allows, then each is cut: with 2 micro-batches and 4 readers two readers share
    each. Raises ConfigError, on every rank alike, when a micro-batch has too few samples to be cut.
    """
    whole = math.gcd(len(batches), readers)
    pieces = readers // whole
    fix = f"Raise batch.rows to {pieces} or more, or make train.accumulation a multiple of {readers}."
    _check_samples(batches, pieces, "several ranks", fix)
    return [batch.share(reader // whole, pieces) for batch in batches[reader % whole :: whole]]


def cut(batches: Sequence[Any], pieces: int) -> list[Any]:
    """Each micro-batch in `pieces` one after another, for a pipeline. Raises ConfigError when one has too few samples."""
    _check_samples(batches, pieces, "a pipeline", f"Raise batch.rows to {pieces} or more, or lower train.parallel.pipeline_pieces.")
    return [batch.share(piece, pieces) for batch in batches for piece in range(pieces)]


def _check_samples(batches: Sequence[Any], pieces: int, reason: str, fix: str) -> None:
    for batch in batches:
        if pieces > 1 and len(batch.sample_ids) < pieces:
            raise ConfigError(
                f"train.parallel: a micro-batch is cut for {reason}", found=f"{len(batch.sample_ids)} samples in it",
                expected=f"at least {pieces}", fix=fix,
            )  # fmt: skip


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replace the gradient of each of the parameters by its sum over the ranks of `group`.

    A parameter that was used on some ranks only has a zero gradient on the others; one that no rank used stays without.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    used = used.to(local(trained[0]).device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group)
    gradients = []
    for parameter, there in zip(trained, used.tolist(), strict=True):
        if there:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(local(parameter.grad))
    for buffer in _buffers(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in buffer])
        dist.all_reduce(flat, group=group)
        sums = flat.split([gradient.numel() for gradient in buffer])
        torch._foreach_copy_(buffer, [part.view_as(gradient) for part, gradient in zip(sums, buffer, strict=True)])


def _buffers(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one type, up to BUFFER_NUMBERS together."""
    buffer: list[Tensor] = []
    for gradient in gradients:
        full = sum(item.numel() for item in buffer) + gradient.numel() > BUFFER_NUMBERS
        if buffer and (full or buffer[0].dtype != gradient.dtype):
            yield buffer
            buffer = []
        buffer.append(gradient)
    if buffer:
        yield buffer
