"""One run's share in many processes: what the loop asks, in one object. With one process every answer is the plain one.

Order of the transforms: pipeline stages, tensor parallelism, then (already there) activation checkpointing, then sharding around both.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from luyen.core import distributed, interrupt
from luyen.core.device import pick_device, pick_dtype
from luyen.core.errors import ConfigError
from luyen.engine.config import ParallelConfig, TrainConfig
from luyen.engine.parallel import tensors
from luyen.engine.parallel.context import join, leave
from luyen.engine.parallel.data import cut, share_out, sum_gradients
from luyen.engine.parallel.mesh import Shape, check_dense
from luyen.engine.parallel.pipeline import Pipeline, Work, check_count, check_layers
from luyen.engine.parallel.shard import layers, make_room, settle, shard
from luyen.engine.parallel.start import emptied, fill
from luyen.engine.parallel.tensor import check as check_heads
from luyen.engine.parallel.tensor import own_heads, split, summed
from luyen.engine.parallel.vocabulary import SharedLoss
from luyen.models.config import TransformerConfig
from luyen.objectives.language_model import computed_by
from luyen.objectives.loss import Loss

Sums = dict[str, tuple[float, float]]
ELEMENTWISE = ("adamw", "lion", "sgd")
"""Optimizers that update every number by itself, so a rank can update its slice alone."""


class Parallel:
    """The layout of a run and this rank's place in it. Made inside `distributed.group`."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises ConfigError when the layout does not fit the processes, or the optimizer does not fit the layout."""
        self.ranks = distributed.ranks()
        self.device = _own_device(config.device)
        self.shape = check(config, self.ranks, self.device)
        self.sliced = self.shape.shard > 1 or self.shape.offload
        if self.shape.offload and not dist.is_initialized():
            raise ConfigError("train.parallel.offload", found="the learning-rate test", expected="a training run", fix="Test without it.")
        self.mesh = self.shape.mesh(self.device) if self.ranks > 1 or self.sliced else None
        dtype = pick_dtype(config.precision, self.device)
        # In a pipeline the head is sent to ranks that do not have it, and layers of other ranks' types would meet.
        self.half = dtype if dtype != torch.float32 and self.shape.pipeline == 1 else None
        self.config = config.parallel
        self.pipeline: Pipeline | None = None
        self._plain: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []

    def place(self, model: nn.Module) -> nn.Module:
        """The model on this rank's device, split as the layout says; every rank starts from the main process' weights.

        The other processes may have made it on the meta device (`distributed.weights_of_main`).
        """
        if self.mesh is None:
            return model.to(self.device)
        source = emptied(model)
        self._shapes = dict(model.named_parameters(remove_duplicate=False))
        self._plain = [(module, type(module), _attributes(module)) for module in model.modules()] if self.shape.splits_weights else []
        if self.shape.pipeline > 1:
            self.pipeline = Pipeline(model, self.mesh, self.config.pipeline_stages, self.device)
            self.pipeline.cut()
        if self.shape.tensor > 1:
            split(model, self.mesh["tensor"])
        if self.shape.context > 1:
            join(model, self.mesh.get_group("context"))
        if self.sliced:
            shard(model, self.mesh, self.shape, self.half)
        if self.pipeline:
            self.pipeline.finish()
        model = fill(model, source, self.device, layers(model) if self.shape.offload else ())
        make_room(model)
        return model

    def optimizers(self, built: list[Optimizer]) -> list[Optimizer]:
        """The optimizers, their groups arranged for the layout."""
        if self.shape.splits_weights:
            tensors.separate(built)
        return built

    def share(self, batches: Sequence[Any]) -> Sequence[Any]:
        """What this rank computes of a step."""
        if self.mesh is None:
            return batches
        own = share_out(batches, self.shape.reader(distributed.rank()), self.shape.readers)
        return cut(own, self.config.pipeline_pieces) if self.pipeline else own

    def add_up(self, model: nn.Module) -> None:
        """After the last backward pass of a step: make every gradient that of all ranks. Sharding has done so by itself."""
        if self.mesh is None:
            return
        if self.shape.data > 1 and self.shape.shard == 1:
            sum_gradients(model.parameters(), self.mesh.get_group("data"))
        if self.shape.context > 1:
            sum_gradients(model.parameters(), self.mesh.get_group("context"))
        if self.shape.tensor > 1:
            sum_gradients(summed(model), self.mesh.get_group("tensor"))
        if self.pipeline:  # last: both copies of a tied weight end with the same bits only if nothing is added to either afterwards
            self.pipeline.add_tied()

    def all_say(self, value: Any) -> list[Any]:
        """What every rank that reads different rows says, in their order; in a pipeline those that compute the loss."""
        return distributed.gather(value)[-self.shape.stage_ranks :: self.shape.alike]

    def totals(self, loss: float, sums: Sums) -> tuple[float, Sums]:
        """Sum of the loss and of the further (sum, count) figures over all rows of the step; a figure may be of some ranks only."""
        total, found = 0.0, dict[str, tuple[float, float]]()
        for part, figures in self.all_say([loss, sums]):
            total += part
            for name, (value, items) in figures.items():
                before = found.get(name, (0.0, 0.0))
                found[name] = (before[0] + value, before[1] + items)
        return total, found

    def train(self, work: Work) -> list[Loss]:
        """Forward and backward of a step's micro-batches through the pipeline; the losses, on ranks that have the last stage."""
        assert self.pipeline is not None
        with self.one_loss():
            losses = self.pipeline.train(work)
        settle(self.pipeline.model)
        return losses

    def norm(self, model: nn.Module) -> Tensor | float:
        """Norm of the whole gradient, still on the device where no rank has a part of it."""
        trained = [parameter for parameter in model.parameters() if not (self.pipeline and self.pipeline.second(parameter))]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if self.pipeline:
            return tensors.norm(gradients, self.pipeline.group)
        if self.shape.splits_weights:
            return tensors.norm(gradients)
        return torch.nn.utils.get_total_norm(gradients, foreach=True)

    def requested_stop(self) -> int:
        """The signal that asked one of the ranks to stop, or 0; the same answer on all."""
        return max(distributed.gather(interrupt.requested())) if self.mesh is not None else interrupt.requested()

    @property
    def one_meter(self) -> bool:
        """Whether the main process' energy counters see all of the work: several GPUs or machines have counters of their own."""
        return self.ranks == 1 or (self.device.type == "cpu" and distributed.one_machine())

    def one_loss(self) -> contextlib.AbstractContextManager[None]:
        """Around what makes a loss: ranks that read the same rows compute parts of it, and each has the whole."""
        tensor, context = (
            self.mesh.get_group(axis) if self.mesh is not None and getattr(self.shape, axis) > 1 else None for axis in ("tensor", "context")
        )
        return computed_by(SharedLoss(tensor, context)) if tensor or context else contextlib.nullcontext()

    @contextlib.contextmanager
    def together(self, model: nn.Module) -> Iterator[None]:
        """Around an evaluation, which all ranks do alike: with several a signal waits, so that none leaves the others alone."""
        if self.mesh is None:
            yield
            return
        stages = self.pipeline.together() if self.pipeline else contextlib.nullcontext()
        with interrupt.held(), own_heads(model, self.shape.tensor), self.one_loss(), stages:
            yield
        settle(model)

    def release(self, model: nn.Module) -> None:
        """Make the model plain again: whole weights on the CPU for the main process; the others keep only their shapes (meta tensors)."""
        if self.shape.context > 1:
            leave(model)
        if not self._plain:
            return
        settle(model)
        whole = tensors.whole_on_main(dict(model.named_parameters()))
        plain: dict[int, nn.Parameter] = {}
        for name, like in self._shapes.items():
            if id(like) not in plain:
                plain[id(like)] = nn.Parameter(whole[name], like.requires_grad) if distributed.is_main() else like
        for module, kind, attributes in self._plain:
            now = {name: module.__dict__[name] for name in ("_buffers", "training")}
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes | now)
        for name, like in self._shapes.items():
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner)._parameters[last] = plain[id(like)]
        self._plain = []


def check(config: TrainConfig, ranks: int, device: torch.device) -> Shape:
    """The layout of a run in so many processes; nothing is begun for it.

    Raises ConfigError when it does not fit the processes, the optimizer or the micro-batches of a step.
    """
    shape = Shape.of(config.parallel, ranks)
    if shape.offload:
        check_offload(shape, ranks, device)
    if (shape.shard > 1 or shape.offload or shape.tensor > 1) and config.optimizer.name not in ELEMENTWISE:
        axis = "shard" if shape.shard > 1 else "tensor" if shape.tensor > 1 else "offload"
        raise ConfigError(
            f"optimizer.name with train.parallel.{axis}", found=config.optimizer.name,
            expected=" or ".join(ELEMENTWISE), fix="It needs whole matrices; with train.parallel.data every process has them.",
        )  # fmt: skip
    if shape.pipeline > 1:
        own = config.accumulation // math.gcd(config.accumulation, shape.readers)
        check_count(own * config.parallel.pipeline_pieces, shape.pipeline, config.parallel.pipeline_stages)
    return shape


def check_model(config: ParallelConfig, model: TransformerConfig) -> None:
    """Raise ConfigError for a decoder of a size, or with experts, that the layout cannot deal out."""
    for axis in ("tensor", "context", "pipeline"):
        if getattr(config, axis) > 1:
            check_dense(f"train.parallel.{axis}", model)
    if config.tensor > 1:
        check_heads(model, config.tensor)
    if config.pipeline > 1:
        check_layers(model.num_layers, config.pipeline * config.pipeline_stages)


def check_offload(shape: Shape, ranks: int, device: torch.device) -> None:
    """Raise ConfigError where slices in the host's memory are of no use, or are not written."""
    if device.type == "cpu":
        fix = "Set train.parallel.offload=false: the weights are there already."
        raise ConfigError("train.parallel.offload", found="device cpu", expected="a GPU", fix=fix)
    if shape.tensor * shape.context * shape.pipeline > 1 or (ranks > 1 and shape.shard == 1):
        raise ConfigError("train.parallel.offload", found=shape.told, expected="shard, or shard and data, or one process", fix="Set shard.")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Everything that torch's transforms may change in a module: its registries (copied) and attributes, without the weights."""
    kept = {name: copy.copy(value) if isinstance(value, dict | set) else value for name, value in module.__dict__.items()}
    kept["_parameters"] = dict.fromkeys(module._parameters)
    return kept


def _own_device(name: str) -> torch.device:
    """The device of this rank: of several GPUs the one with its number on the machine."""
    device = pick_device(name)
    if device.type == "cuda" and device.index is None and distributed.ranks() > 1:
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    return device
