"""Packed batches as a stream that can be entered at any point.

An epoch is a pure function of (samples, seed, epoch): a permutation, packed best-fit window by window, the rows then put in a random
order. The epochs' rows form one endless sequence, and a batch is the next `rows` of it; the batch at the end of an epoch is completed with
rows of the next. So the state is a position in that sequence, and 8 batches of 1 row hold the same samples as 1 batch of 8 rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luyen.core.device import to_device
from luyen.core.errors import DataError
from luyen.data.packing import best_fit
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.data.shuffle import permutation

# Samples are packed in windows of the permutation, not all at once: over a whole epoch a long sample would meet
# the same few short ones every time. 4096 already fills rows to more than 99 % (tests/data/test_packing.py).
WINDOW = 4096


@dataclass(frozen=True)
class Batch:
    """Packed samples, flat: T = sum(lengths) tokens without padding; sample k takes the next lengths[k] positions; K are trained on."""

    tokens_T: torch.Tensor
    """int64."""
    targets_T: torch.Tensor
    """int64; the token to predict at each position, -100 where not trained."""
    lengths: tuple[int, ...]
    sample_ids: tuple[str, ...]
    num_targets: int
    """Positions that are trained on."""
    trained: tuple[int, ...] = ()
    """The same for each sample."""
    trained_positions_K: torch.Tensor | None = None
    """int64, growing: which positions have a target, known where the batch is made, so that nobody must ask a GPU. None: not known."""

    def __post_init__(self) -> None:
        if self.trained_positions_K is not None and len(self.trained_positions_K) != self.num_targets:
            raise ValueError(f"{len(self.trained_positions_K)} trained positions for {self.num_targets} targets")

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`; the host waits for no GPU."""
        positions = self.trained_positions_K
        return dataclasses.replace(
            self,
            tokens_T=to_device(self.tokens_T, device),
            targets_T=to_device(self.targets_T, device),
            trained_positions_K=None if positions is None else to_device(positions, device),
        )

    def share(self, part: int, parts: int) -> Batch:
        """Part `part` of `parts` pieces: whole samples in their order, about equally many tokens in each, at least one sample.

        The batch is on the host.
        """
        if parts == 1:
            return self
        samples = len(self.lengths)
        if samples < parts:
            raise DataError(f"a batch of {samples} samples cannot be cut into {parts} pieces")
        ends = np.cumsum(self.lengths)
        wanted = np.searchsorted(ends - np.array(self.lengths) / 2, ends[-1] * np.arange(1, parts) / parts)
        # Every piece keeps a sample: cut k lies after at least k samples and leaves at least one to each piece behind it.
        cuts = [0]
        for number, cut in enumerate(wanted.tolist(), 1):
            cuts.append(min(max(cut, cuts[-1] + 1), samples - (parts - number)))
        first, last = [*cuts, samples][part : part + 2]
        tokens = slice(int(ends[first - 1]) if first else 0, int(ends[last - 1]))
        targets = self.targets_T[tokens]
        positions = _trained_positions(targets.numpy())
        return Batch(
            self.tokens_T[tokens], targets, self.lengths[first:last], self.sample_ids[first:last], len(positions),
            self.trained[first:last], positions,
        )  # fmt: skip


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples one after another as a batch."""
    tokens = np.concatenate([sample.tokens for sample in samples]).astype(np.int64)
    targets = np.concatenate([sample.targets for sample in samples]).astype(np.int64)
    return Batch(
        tokens_T=torch.from_numpy(tokens),
        targets_T=torch.from_numpy(targets),
        lengths=tuple(len(sample.tokens) for sample in samples),
        sample_ids=tuple(sample.id for sample in samples),
        num_targets=sum(sample.num_targets for sample in samples),
        trained=tuple(sample.num_targets for sample in samples),
        trained_positions_K=_trained_positions(targets),
    )


def _trained_positions(targets: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(targets != NOT_TRAINED))


class PackedStream:
    """Endless batches of `rows` packed rows of at most `capacity` tokens."""

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        capacity: int,
        rows: int,
        seed: int,
        order: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> None:
        """`order(epoch)` gives the sample indices of an epoch (a Mixture's); the default is a permutation of all samples.

        Raises DataError when there are no samples or one is longer than `capacity`.
        """
        if not samples:
            raise DataError("there is nothing to train on: no samples", fix="Look at what was dropped and why with luyen inspect.")
        for sample in samples:
            if len(sample.tokens) > capacity:
                length = len(sample.tokens)
                raise DataError(f"sample {sample.id} does not fit a row", found=f"{length} tokens", expected=f"at most {capacity}")
        self.samples, self.capacity, self.rows, self.seed = samples, capacity, rows, seed
        self._order = order or (lambda epoch: permutation(len(samples), seed, "order", epoch))
        self._plans: dict[int, list[list[int]]] = {}
        self.fingerprint = _fingerprint(samples, self._order(0), f"{capacity} {seed} {WINDOW}")

    def plan(self, epoch: int) -> list[list[int]]:
        """The rows of an epoch, each a list of sample indices: a pure function of (samples, capacity, seed, epoch)."""
        if epoch not in self._plans:
            order = self._order(epoch).tolist()
            packed: list[list[int]] = []
            for start in range(0, len(order), WINDOW):
                window = order[start : start + WINDOW]
                lengths = [len(self.samples[index].tokens) for index in window]
                packed += [[window[place] for place in row] for row in best_fit(lengths, self.capacity)]
            shuffled = [packed[place] for place in permutation(len(packed), self.seed, "rows", epoch).tolist()]
            self._plans = {key: value for key, value in self._plans.items() if key == epoch - 1} | {epoch: shuffled}
        return self._plans[epoch]

    def batches(self, state: Mapping[str, Any] | None = None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """(batch, state) for ever; `batches(state)` continues with exactly the batch that followed the one yielded with `state`.

        Raises DataError when `state` was made with other samples, capacity or seed. The number of rows in a batch may differ.
        """
        epoch, row = self._position(state)
        while True:
            indices: list[int] = []
            for _ in range(self.rows):
                while row >= len(self.plan(epoch)):  # an epoch of a mixture may hold one row fewer than another
                    epoch, row = epoch + 1, 0
                indices += self.plan(epoch)[row]
                row += 1
            yield collate([self.samples[index] for index in indices]), {"epoch": epoch, "row": row, "data": self.fingerprint}

    def _position(self, state: Mapping[str, Any] | None) -> tuple[int, int]:
        if state is None:
            return 0, 0
        if state["data"] != self.fingerprint:
            raise DataError("cannot continue: the training data, its packing or the seed changed since the checkpoint",
                            fix="Put back the same data and settings, or start anew in another folder.")  # fmt: skip
        return int(state["epoch"]), int(state["row"])


def _fingerprint(samples: Sequence[Sample], first_order: NDArray[np.int64], settings: str) -> str:
    """A short hash of everything that decides the stream, so that a state cannot be used with other data."""
    digest = hashlib.blake2b(settings.encode(), digest_size=12)
    digest.update(np.ascontiguousarray(first_order).data)
    for sample in samples:
        digest.update(f"\n{sample.id}\n{len(sample.tokens)}\n".encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(sample.tokens).data)
        digest.update(np.ascontiguousarray(sample.targets).data)
    return digest.hexdigest()
