"""Shards of a checkpoint: every process writes what it holds, and reads what it needs, by torch.distributed.checkpoint (DCP).

Each group of tensors is a folder of safetensors files, one for each process, in the form of torch's Hugging Face storage: a file's header
says where in the whole tensor its piece begins. So there is no pickle, and any number of processes in any layout can read it. What
several processes hold alike is written by one of them, the one with least to write so far.

Nothing is collective but `share_out`: DCP's planners work for one process here, and who writes what is agreed on in JSON beforehand. A save
may therefore be finished by a thread beside a loop that uses the process group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.tensor import DTensor

from luyen.core import distributed
from luyen.engine.parallel.tensors import local


class _Planner(DefaultSavePlanner):
    """Finds a plan's pieces in `pieces`, this process' parts by name: they may be copies of the tensors that the plan was made for."""

    def __init__(self, pieces: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = pieces

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The piece of that name."""
        return self.pieces[index.fqn]


@dataclass(frozen=True)
class Share:
    """What this process writes of a group of tensors."""

    plan: SavePlan
    pieces: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        """Size of the pieces."""
        return sum(piece.nbytes for piece in self.pieces.values())


def share_out(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Share]:
    """What this process writes of each group; together the processes write every piece once. All call this.

    A DTensor counts as the piece that lies here, another tensor as a whole one. The pieces share memory with the tensors.
    """
    plans = {group: _plan(tensors) for group, tensors in groups.items()}
    own = [[group, _key(item), _bytes(item)] for group, plan in plans.items() for item in plan.items]
    holders: dict[tuple[str, str], list[int]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for rank, listed in enumerate(distributed.gather(own)):
        for group, key, size in listed:
            holders.setdefault((group, key), []).append(rank)
            sizes[group, key] = size
    load = [0] * distributed.ranks()
    writers = {}
    for piece in sorted(sizes, key=lambda piece: (-sizes[piece], piece)):  # the same order and so the same answer everywhere
        writers[piece] = min(holders[piece], key=lambda rank: (load[rank], rank))
        load[writers[piece]] += sizes[piece]
    shares = {}
    for group, plan in plans.items():
        items = [item for item in plan.items if writers[group, _key(item)] == distributed.rank()]
        pieces = {item.index.fqn: local(groups[group][item.index.fqn]).detach() for item in items}
        shares[group] = Share(dataclasses.replace(plan, items=items), pieces)
    return shares


def write(folder: Path, share: Share, pieces: Mapping[str, Tensor]) -> list[Path]:
    """Write this process' pieces, its own or copies of them, and force them to the disk. Returns the file; none where it has no piece."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.set_up_storage_writer(distributed.is_main())
    plan = writer.prepare_local_plan(share.plan)
    plan = writer.prepare_global_plan([plan] * distributed.ranks())[distributed.rank()]  # which numbers the file
    planner = _Planner(pieces)
    results = writer.write_data(planner.finish_plan(plan), planner).wait()
    return [folder / name for name in sorted({result.storage_data.relative_path for result in results})]


class Shards:
    """A group's folder, to read from; any process may, and none needs another for it. Its files are verified by the caller."""

    def __init__(self, folder: Path) -> None:
        self._reader = HuggingFaceStorageReader(str(folder))
        # An optimizer without state has no folder.
        self._metadata = self._reader.read_metadata() if folder.is_dir() else Metadata(state_dict_metadata={}, storage_data={})
        self._reader.set_up_storage_reader(self._metadata, distributed.is_main())
        self.shapes = {name: tuple(found.size) for name, found in self._metadata.state_dict_metadata.items()}
        """Shape of every whole tensor by name."""

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill these tensors in place, of a DTensor the part that lies here."""
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), self._metadata, distributed.is_main())
        self._reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()

    def empty(self, name: str, like: Tensor | None = None) -> Tensor:
        """Room for a tensor: split as `like` where it has its shape, else whole on the device of `like` or the CPU."""
        found = self._metadata.state_dict_metadata[name]
        if isinstance(like, DTensor) and tuple(like.shape) == self.shapes[name]:
            part = torch.empty_like(like.to_local(), dtype=found.properties.dtype)
            whole = {"shape": like.shape, "stride": like.stride()}
            split = DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, **whole)
            return split.to(like.device)  # which may be the host of a mesh of GPUs
        return torch.empty(found.size, dtype=found.properties.dtype, device="cpu" if like is None else like.device)

    def whole(self, name: str) -> Tensor:
        """One tensor in whole, on the CPU."""
        tensor = self.empty(name)
        self.read_into({name: tensor})
        return tensor


def _plan(tensors: Mapping[str, Tensor]) -> SavePlan:
    """Where in the whole each tensor's piece lies; pieces without a number are left out unless the whole has none."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(sorted(tensors.items())), None, distributed.is_main())  # equal tensors give equal bytes
    plan = planner.create_local_plan()
    items = [item for item in plan.items if _bytes(item) or not math.prod(item.tensor_data.size)]  # type: ignore[union-attr]
    return dataclasses.replace(plan, items=items)


def _key(item: WriteItem) -> str:
    """Name and place of a piece."""
    return f"{item.index.fqn} {list(item.index.offset or ())}"


def _bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
