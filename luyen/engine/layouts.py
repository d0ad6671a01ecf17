"""How devices can share a training run: the axes of a layout, what of a batch each has, how long a pipeline waits.

Pure functions; nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Layout:
    """How many devices share the work, and how."""

    data: int = 1
    """Groups that hold the same weights and see other rows."""
    shard: int = 1
    """Devices of a group that hold a part of weights, gradients and optimizer each, and see other rows."""
    tensor: int = 1
    """Devices that compute one layer together."""
    context: int = 1
    """Devices that share the tokens of the same rows and have the same weights."""
    pipeline: int = 1
    """Devices that have some of the layers each and hand the rows on (1F1B)."""

    @property
    def devices(self) -> int:
        """All devices."""
        return self.data * self.shard * self.tensor * self.context * self.pipeline

    @property
    def alike(self) -> int:
        """Devices that work on the same rows."""
        return self.tensor * self.context

    @property
    def streams(self) -> int:
        """Devices that see other rows than their neighbours."""
        return self.data * self.shard

    def __str__(self) -> str:
        """Only what is more than one, for example "data 2, shard 4"."""
        named = ((item.name, getattr(self, item.name)) for item in fields(self))
        return ", ".join(f"{name} {count}" for name, count in named if count > 1) or "one device"


@dataclass(frozen=True)
class Batch:
    """What one update of the weights sees, and in which pieces."""

    rows: int
    """Rows of a micro-batch on one device."""
    accumulation: int
    length: int

    def split(self, streams: int, rows: int | None = None) -> Batch | None:
        """The same update on `streams` devices, at most `rows` rows at a time on each (else as many as now); None if they do not divide."""
        whole = self.rows * self.accumulation
        if whole % streams:
            return None
        each, most = whole // streams, rows or self.rows
        pieces = next(size for size in range(min(most, each), 0, -1) if each % size == 0)
        return Batch(pieces, each // pieces, self.length)


def bubble(layout: Layout, micro_batches: int, stages: int = 1) -> float:
    """Share of the time in which a device of a pipeline waits for others, with `stages` runs of layers on each.

    Narayanan et al., 2021 (arXiv:2104.04473, section 2.2): the wait is (p - 1) / (v m) of the ideal time, so (p - 1) / (v m + p - 1) of
    all; v is 1 for 1F1B, more for interleaved 1F1B.
    """
    return (layout.pipeline - 1) / (stages * micro_batches + layout.pipeline - 1)


def layouts(devices: int, most_tensor: int = 8) -> list[Layout]:
    """Every way to use this many devices by powers of two, the simplest first: data alone, then shards, then tensor parallelism.

    Then pipelines and then context groups, with data and shards, the latter also with tensor parallelism.
    """
    powers = [2**power for power in range(devices.bit_length()) if 2**power <= devices]
    found = [
        Layout(devices // (shard * tensor * context), shard, tensor, context)
        for context in powers
        for tensor in powers
        if tensor <= most_tensor
        for shard in powers
        if devices % (shard * tensor * context) == 0
    ]
    found += [
        Layout(devices // (shard * pipeline), shard, pipeline=pipeline)
        for pipeline in powers[1:]
        for shard in powers
        if devices % (shard * pipeline) == 0
    ]
    return sorted(found, key=lambda layout: (layout.context, layout.pipeline, layout.tensor, layout.shard))
