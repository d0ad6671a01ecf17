"""Averages of the weights, which are often better than the last ones: less of the last steps' noise is in them.

Two ways, by `optimizer.ema_decay` and `checkpoint.average_last`. The first follows the weights at every update,

    A <- A + (1 - d) / (1 - d^n) (W - A)    after the nth update,

the exponentially weighted mean of W1 .. Wn with no part of the initial weights; d near 1 gives the plain mean of Polyak and Juditsky, 1992.
The second is the plain mean of the last checkpoints' weights (Izmailov et al., 2018, arXiv:1803.05407). Training itself goes on from the
last weights in both; only evaluations and the model at the end see the average.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from luyen.core import distributed, progress
from luyen.core.errors import DamagedFile, ModelError
from luyen.engine import checkpoint
from luyen.engine.config import TrainConfig
from luyen.engine.parallel.tensors import part_like, whole_on_main

AVERAGE, COUNT = "average", "averaged"
"""Where an optimizer's state holds a parameter's average, and of how many updates it is."""


def follow(optimizers: Iterable[Optimizer], decay: float) -> None:
    """From now on every update of these optimizers also updates the average of each weight, in their own state.

    So a checkpoint holds it, an update that was skipped is not counted, and a weight's average begins at its first gradient.
    """
    for optimizer in optimizers:
        optimizer.register_step_post_hook(functools.partial(_after_update, decay))


@torch.no_grad()
def _after_update(decay: float, optimizer: Optimizer, _arguments: Any, _keywords: Any) -> None:
    for group in optimizer.param_groups:
        averages, weights, shares = [], [], []
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if parameter.grad is None and AVERAGE not in state:
                continue
            state = optimizer.state[parameter]
            if AVERAGE not in state:
                state[AVERAGE], state[COUNT] = torch.zeros_like(parameter), 0
            state[COUNT] += 1
            averages.append(state[AVERAGE])
            weights.append(parameter)
            shares.append((1 - decay) / (1 - decay ** state[COUNT]))
        if averages:
            torch._foreach_lerp_(averages, weights, shares)


def followed(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The averages that `follow` has made so far, by parameter name; they share memory with the optimizers' state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states = [(parameter, state) for optimizer in optimizers for parameter, state in optimizer.state.items()]
    return {names[id(parameter)]: state[AVERAGE] for parameter, state in states if AVERAGE in state}


def average_checkpoints(folders: Sequence[Path], last: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Mean of the weights of these checkpoints, and of `last` when it is given, by name; summed in 64 bits in the order given.

    Numbers that are no floats are those of the last. Raises DamagedFile for a checkpoint that is missing or damaged, ModelError when they
    are not of one model or there is none.
    """
    if not folders and last is None:
        raise ModelError("the mean of no checkpoints", found="none", expected="at least one folder")
    with contextlib.ExitStack() as stack:
        named, readers = [], []
        for folder in folders:
            checkpoint.open_checkpoint(folder)
            group = stack.enter_context(checkpoint.open_group(folder, "model"))
            named.append((folder.name, set(group.shapes)))
            readers.append(group)
        named += [] if last is None else [("the weights now", set(last))]
        for name, keys in named:
            if different := keys ^ named[0][1]:
                raise ModelError(f"{name} and {named[0][0]} are not of one model", found=f"{min(different)} in one of them only")
        mean = {}
        for key in sorted(named[0][1]):
            members = [group.whole(key) for group in readers] + ([] if last is None else [last[key].cpu()])
            mean[key] = members[-1].clone()
            if members[-1].is_floating_point():
                mean[key] = (sum(member.double() for member in members) / len(members)).to(members[-1].dtype)
    return mean


class Averaging:
    """What takes the place of the last weights in one run: a followed average, the mean of its last checkpoints, or nothing.

    Which checkpoints are in the mean follows from the config and the last step alone, so a stop on the way changes nothing.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], config: TrainConfig, root: Path) -> None:
        self.model, self.optimizers, self.root = model, optimizers, root
        self.decay = config.optimizer.ema_decay
        self.last, self.every = config.checkpoint.average_last, config.checkpoint.every_steps

    def spared(self, step: int) -> list[int]:
        """Steps whose checkpoints must stay after `step`, as a mean of the last ones may need them. Stops by a signal are none of them."""
        newest = step // self.every * self.every
        return [early for early in range(newest, 0, -self.every)][: self.last] if self.last > 1 else []

    @contextlib.contextmanager
    def used(self, step: int, last: bool) -> Iterator[None]:
        """Within the block the model holds the average; the weights come back after it, to the bit.

        The mean of checkpoints is known only after the `last` step.
        """
        stored = checkpoint.model_tensors(self.model)
        averages = self._weights(step, last)
        swapped: list[str] = []
        try:
            for name, average in averages.items():
                _exchange(stored[name], average)
                swapped.append(name)
            yield
        finally:
            for name in swapped:
                _exchange(stored[name], averages[name])

    def finish(self, step: int) -> None:
        """Put the average into the model for good, after the last step."""
        averages = self._weights(step, last=True)
        with torch.no_grad():
            for name, tensor in checkpoint.model_tensors(self.model).items():
                if name in averages:
                    tensor.copy_(averages[name])
        if self.decay is not None:
            progress.say(f"the model is the average of its weights (ema_decay {self.decay})")
        elif self.last > 1:
            progress.say(f"the model is the mean of its weights after steps {', '.join(map(str, [*self._earlier(step), step]))}")

    def _weights(self, step: int, last: bool) -> dict[str, Tensor]:
        if self.decay is not None:
            return followed(self.model, self.optimizers)
        if self.last == 1 or not last:
            return {}
        stored = checkpoint.model_tensors(self.model)
        whole = whole_on_main(stored)
        mean = self._mean(step, whole) if distributed.is_main() else None
        return {name: part_like(tensor, stored[name]) for name, tensor in distributed.from_main(mean) if name in stored}

    def _mean(self, step: int, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
        folders = [self.root / f"step-{early:08d}" for early in self._earlier(step)]
        try:
            return average_checkpoints(folders, last)
        except DamagedFile as error:
            fix = "Delete the checkpoints from that step on to train from before it, or set checkpoint.average_last=1"
            raise DamagedFile(error.path, f"{error.reason}, and checkpoint.average_last={self.last} needs it. {fix}") from error

    def _earlier(self, step: int) -> list[int]:
        """The steps before the last whose checkpoints are in the mean."""
        return sorted(early for early in self.spared(step) if early < step)[-(self.last - 1) :]


@torch.no_grad()
def _exchange(one: Tensor, other: Tensor) -> None:
    """Swap the numbers of two tensors."""
    before = one.clone()
    one.copy_(other)
    other.copy_(before)
