"""What a policy is compared with: the log-probabilities of the same answers under the model that it began as, or another.

A second frozen model; the policy with its adapter off, which is that model without a second copy; or figures that were computed once
before training and are kept in files.

Shapes: S sequences, N groups, C sequences of each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luyen.adapters.off import without_adapter
from luyen.algorithms.sequences import by_sequence, token_log_probabilities
from luyen.core import distributed, interrupt, progress
from luyen.core.manifest import fingerprint
from luyen.core.storage import replacing, storage_errors
from luyen.data.branches import BranchedBatch
from luyen.data.pairs import GroupStream
from luyen.models.transformer import Transformer

COLUMN = "reference_S"
"""Figures that were computed before training, as a column of the batches."""
PART = 1024
"""Groups in a file of them."""


class Reference(Protocol):
    """Gives the log-probability (nats) of every sequence of a batch, (S,), without gradient."""

    def __call__(self, batch: BranchedBatch) -> Tensor:
        """Sums over the trained tokens."""


def log_probabilities(model: Transformer, batch: BranchedBatch) -> Tensor:
    """Log-probability (nats) of every sequence's trained tokens together, (S,)."""
    return by_sequence(token_log_probabilities(model, batch), batch)


class FrozenModel:
    """A second model."""

    def __init__(self, model: Transformer) -> None:
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: BranchedBatch) -> Tensor:
        """On the batch's device, where the model goes with the first one."""
        self.model.to(batch.tokens_T.device)
        return log_probabilities(self.model, batch)


class AdapterOff:
    """The policy's own base. Only for adapters beside weights that nothing trains."""

    def __init__(self, policy: Transformer) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: BranchedBatch) -> Tensor:
        """By the policy as it is without what is trained."""
        with without_adapter(self.policy):
            return log_probabilities(self.policy, batch)


class Known:
    """What `precompute` found."""

    def __call__(self, batch: BranchedBatch) -> Tensor:
        """The batch's own column."""
        return batch.columns[COLUMN]


def precompute(of: Callable[[BranchedBatch], Tensor], stream: GroupStream, folder: Path, key: object) -> None:
    """Give every batch of a stream the figures of a reference, which is asked once for each group; a column of (N, C) in fp32.

    They are kept in `folder` in files of `PART` groups, with a hash of the stream and of `key`, which says what else they depend on
    (weights, precision); files that have it are taken as they are, so what was stopped goes on. All groups have equally many sequences.
    Of several processes the main one computes, and the others, which may hold no weights, are told.
    """
    digest = fingerprint([stream.fingerprint, key])
    parts = []
    with progress.task("reference", len(stream.groups), "groups") as bar:
        for number, start in enumerate(range(0, len(stream.groups), PART)):
            places = range(start, min(start + PART, len(stream.groups)))
            path, own = folder / f"part-{number:05}.safetensors", fingerprint([digest, number])
            found = _kept(path, own) if distributed.is_main() else None
            if found is None and distributed.is_main():
                found = _computed(of, stream, places)
                _keep(path, found, own)
            values = distributed.told_by_main(None if found is None or distributed.ranks() == 1 else found.tolist())
            parts.append(found if found is not None else torch.tensor(values, dtype=torch.float32))
            bar.advance(len(places))
    stream.add(COLUMN, torch.cat(parts))


def _computed(of: Callable[[BranchedBatch], Tensor], stream: GroupStream, places: range) -> Tensor:
    """Of one file's groups, in batches of the stream's size."""
    found = []
    for start in range(places.start, places.stop, stream.size):
        interrupt.check()
        batch = stream.batch(range(start, min(start + stream.size, places.stop)))
        found.append(of(batch).float().cpu().view(len(batch.sizes), -1))
    return torch.cat(found)


def _keep(path: Path, values_NC: Tensor, digest: str) -> None:
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({COLUMN: values_NC}, temporary, metadata={"of": digest})


def _kept(path: Path, digest: str) -> Tensor | None:
    """What the file holds; None where there is none, or one of something else."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(COLUMN) if (file.metadata() or {}).get("of") == digest else None
    except SafetensorError:
        return None
