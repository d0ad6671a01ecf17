"""The learning-rate range test: train a few steps while the rate rises exponentially, and look where the loss falls and where it breaks.

Smith, 2017, arXiv:1506.01186, section 3.3. The loss after the update with each rate is averaged with its neighbours; the suggested rate is
where it falls fastest over the logarithm of the rate, before its lowest point. It is the rate to begin a search at, not its result.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from luyen.core import distributed, interrupt, progress
from luyen.core.device import pick_device
from luyen.core.errors import ConfigError, NonFinite
from luyen.core.random_state import random_state, restore_random_state
from luyen.engine import schedule
from luyen.engine.activations import check_offload, recomputed
from luyen.engine.algorithm import Algorithm, Hooks
from luyen.engine.config import CheckpointConfig, ScheduleConfig, TrainConfig, WatchConfig
from luyen.engine.fp8 import check as check_fp8
from luyen.engine.fp8 import trained_in_fp8
from luyen.engine.memory import freed_memory_kept
from luyen.engine.run import Run

BROKEN = 4.0
"""The test ends when a loss is this many times the lowest so far."""
NEIGHBOURS = 20
"""A loss is averaged with a twentieth of the steps on each side."""


@dataclass(frozen=True)
class RateCurve:
    """What the test saw."""

    rates: tuple[float, ...]
    """Rising; fewer than asked for when the loss broke."""
    losses: tuple[float, ...]
    """Mean loss of the step after the update with each rate."""
    suggestion: float | None
    """Where the averaged loss falls fastest; None when it never fell."""
    lowest: float
    """Where the averaged loss is lowest: the largest rate worth a try."""
    averaged: tuple[float, ...] = ()
    """The losses, each averaged with its neighbours."""
    broken: float | None = None
    """The rate whose update made the loss BROKEN times its lowest, or not finite; None when none did."""


def find(
    algorithm: Algorithm, config: TrainConfig, *, smallest: float = 1e-6, largest: float = 1.0, steps: int = 100, seed: int = 0
) -> RateCurve:  # fmt: skip
    """Run the test with the config's optimizer, precision and accumulation on the algorithm's first batches.

    Afterwards the weights, buffers, gradients, modes and random numbers are as before, to the bit; nothing is written. While it runs it
    needs a copy of what is trained. Raises ConfigError when the rates do not rise, there are fewer than 5 steps or several processes,
    NonFinite when the very first loss is not finite, Interrupted at a signal.
    """
    if not 0 < smallest < largest:
        raise ConfigError("the learning rates to try", found=f"{smallest} to {largest}", expected="a rise from above 0")
    if steps < 5:
        raise ConfigError("steps of the learning-rate test", found=steps, expected="at least 5")
    if distributed.ranks() > 1:
        raise ConfigError("the learning-rate test", found=f"{distributed.ranks()} processes", expected="one")
    device, fp8 = pick_device(config.device), config.precision == "fp8"
    check_offload(config.activations, device)
    if fp8:
        check_fp8(device, config.parallel.tensor)
    ramp = config.model_copy(
        update={
            "steps": steps,
            "optimizer": config.optimizer.model_copy(update={"learning_rate": largest, "ema_decay": None}),
            "schedule": ScheduleConfig(name="ramp", warmup_steps=0, final_fraction=smallest / largest),
            "checkpoint": CheckpointConfig(),
            "watch": WatchConfig(window=0),
        }
    )
    model = algorithm.model
    with _put_back(model), freed_memory_kept(), trained_in_fp8(model, fp8), recomputed(model, config.activations):
        losses, broke = _losses(algorithm, ramp, seed)
    rates = [largest * schedule.factor(ramp.schedule, step, steps) for step in range(len(losses))]
    whole = [loss for loss in losses[1:] if math.isfinite(loss)]
    curve = judge(rates[: len(whole)], whole, max(1, steps // NEIGHBOURS))
    return replace(curve, broken=rates[len(losses) - 2] if broke else None)


def _losses(algorithm: Algorithm, ramp: TrainConfig, seed: int) -> tuple[list[float], bool]:
    """The loss before every update of the ramp until it breaks, and whether it did; one that is not finite comes last."""
    losses: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="luyen-rates-") as scratch,
        contextlib.closing(Run(algorithm, ramp, Path(scratch), seed, Hooks())) as run,
        progress.task("trying learning rates", ramp.steps, "steps") as task,
    ):
        stream = algorithm.batches(None)
        while len(losses) < ramp.steps:
            try:
                run.update(stream)
            except NonFinite:
                if not losses:
                    raise
                return [*losses, math.nan], True
            losses.append(run.done.loss)
            if losses[-1] > BROKEN * min(losses):
                return losses, True
            task.advance()
            task.note(run.note())
            interrupt.check()
    return losses, False


def judge(rates: Sequence[float], losses: Sequence[float], width: int) -> RateCurve:
    """The curve with its two rates; each loss is averaged with `width` neighbours on each side, as far as there are any."""
    smooth = [_mean(losses[max(0, place - width) : place + width + 1]) for place in range(len(losses))]
    lowest = min(range(len(smooth)), key=smooth.__getitem__) if smooth else 0
    slopes = [(smooth[place + 1] - smooth[place]) / math.log(rates[place + 1] / rates[place]) for place in range(lowest)]
    steepest = min(range(len(slopes)), key=slopes.__getitem__) if slopes else 0
    falls = bool(slopes) and slopes[steepest] < 0
    best = rates[lowest] if smooth else 0.0
    return RateCurve(tuple(rates), tuple(losses), rates[steepest] if falls else None, best, tuple(smooth))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@contextlib.contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """After the block everything in the model that training changes, and the random numbers, are as before."""
    numbers = random_state()
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    held = [*(parameter for parameter, _ in gradients if parameter.requires_grad), *model.buffers()]
    before = [tensor.detach().clone() for tensor in held]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        restore_random_state(numbers)
