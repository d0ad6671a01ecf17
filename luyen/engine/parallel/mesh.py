"""How the processes of a run are laid out: data x shard x tensor, the tensor ranks next to each other.

Rank = (data index * shard + shard index) * tensor + tensor index, so the ranks that talk most share a machine. Ranks of one tensor group
read the same rows; the data x shard others read different ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from luyen.core.errors import ConfigError
from luyen.engine.config import ParallelConfig

AXES = ("data", "shard", "tensor")


@dataclass(frozen=True)
class Shape:
    """Number of ranks along every axis of the layout."""

    data: int
    shard: int
    tensor: int

    @staticmethod
    def of(config: ParallelConfig, ranks: int) -> Shape:
        """The layout of a config for so many processes. Raises ConfigError when it does not use all of them."""
        fixed = config.shard * config.tensor
        data = config.data or max(1, ranks // fixed)
        if data * fixed != ranks:
            wanted = f"data {data} x shard {config.shard} x tensor {config.tensor} = {data * fixed} processes"
            fix = f"Start it with torchrun --nproc-per-node {data * fixed}, or change train.parallel."
            raise ConfigError("train.parallel", found=wanted, expected=f"{ranks}, as many as were started", fix=fix)
        return Shape(data, config.shard, config.tensor)

    @property
    def readers(self) -> int:
        """Ranks that read different rows."""
        return self.data * self.shard

    @property
    def splits_weights(self) -> bool:
        """Whether no rank holds the whole model."""
        return self.shard > 1 or self.tensor > 1

    def mesh(self, device: torch.device) -> DeviceMesh:
        """torch's mesh of this shape."""
        return init_device_mesh(device.type, (self.data, self.shard, self.tensor), mesh_dim_names=AXES)
