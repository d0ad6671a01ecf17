"""How the processes of a run are laid out: pipeline x data x shard x context x tensor, the tensor ranks next to each other.

Rank = (((pipeline index * data + data index) * shard + shard index) * context + context index) * tensor + tensor index, so the ranks that
talk most share a machine and those that talk least, the stages of a pipeline, may be far apart. The data x shard readers read different
rows; a pipeline's ranks and those of a context or tensor group read the same ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from luyen.core import distributed
from luyen.core.errors import ConfigError
from luyen.engine.config import ParallelConfig
from luyen.models.config import TransformerConfig

AXES = ("pipeline", "data", "shard", "context", "tensor")


@dataclass(frozen=True)
class Shape:
    """Number of ranks along every axis of the layout."""

    data: int
    shard: int
    tensor: int
    pipeline: int = 1
    context: int = 1
    offload: bool = False
    """Whether the slices of layers lie in the host's memory."""

    @staticmethod
    def of(config: ParallelConfig, ranks: int) -> Shape:
        """The layout of a config for so many processes. Raises ConfigError when it does not use all of them."""
        fixed = config.pipeline * config.shard * config.context * config.tensor
        data = config.data or max(1, ranks // fixed)
        shape = Shape(data, config.shard, config.tensor, config.pipeline, config.context, config.offload)
        if data * fixed != ranks:
            wanted = f"{shape.told} = {data * fixed} processes"
            fix = f"Start it with torchrun --nproc-per-node {data * fixed}, or change train.parallel."
            raise ConfigError("train.parallel", found=wanted, expected=f"{ranks}, as many as were started", fix=fix)
        return shape

    @staticmethod
    def least(config: ParallelConfig) -> int:
        """Number of processes that a config asks for at least."""
        return config.pipeline * config.shard * config.context * config.tensor * max(1, config.data)

    @property
    def told(self) -> str:
        """The axes in words."""
        axes = {"data": self.data, "shard": self.shard, "tensor": self.tensor}
        more = {"pipeline": self.pipeline, "context": self.context}
        return " x ".join(f"{name} {size}" for name, size in (axes | {name: size for name, size in more.items() if size > 1}).items())

    @property
    def readers(self) -> int:
        """Ranks that read different rows."""
        return self.data * self.shard

    @property
    def alike(self) -> int:
        """Neighbouring ranks that read the same rows."""
        return self.context * self.tensor

    @property
    def stage_ranks(self) -> int:
        """Ranks of one place in the pipeline, which are neighbours."""
        return self.readers * self.alike

    def reader(self, rank: int) -> int:
        """Which of the readers a rank is, or reads the same rows as."""
        return rank % self.stage_ranks // self.alike

    @property
    def splits_weights(self) -> bool:
        """Whether no rank holds the whole model as plain tensors of its device."""
        return self.shard > 1 or self.tensor > 1 or self.pipeline > 1 or self.offload

    @property
    def whole_gradients(self) -> bool:
        """Whether a backward pass leaves the gradient of its rows on a rank that reads them, whole."""
        return not self.splits_weights and self.context == 1

    def mesh(self, device: torch.device) -> DeviceMesh:
        """torch's mesh of this shape."""
        return init_device_mesh(device.type, tuple(getattr(self, axis) for axis in AXES), mesh_dim_names=AXES)


def check_dense(setting: str, config: TransformerConfig) -> None:
    """Raise ConfigError for a mixture of experts: the balance of their load is that of all tokens of a pass in all layers, on one rank."""
    if config.variant.experts is not None:
        found, fix = f"{config.variant.experts.count} experts", "Use train.parallel.data or shard."
        raise ConfigError(setting, found=found, expected="a decoder without experts", fix=fix)


@contextlib.contextmanager
def alone(wanted: bool) -> Iterator[None]:
    """Within the block a process that no launcher started is a group of one, if that is `wanted`: slicing needs a group."""
    if not wanted or distributed.ranks() > 1:
        yield
        return
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
