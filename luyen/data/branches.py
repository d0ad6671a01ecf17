"""Several answers to one prompt as one batch, the prompt read once.

A group is the answers to one prompt (the two of a preference, the samples of a rollout), each a whole sequence as in data/samples.py. What
they have in common and none of them trains on is their trunk; each goes on from it as a branch (`Layout.branched`). The prompt's last
token is not in the trunk: every branch predicts its own next token there.

Shapes: G groups, S sequences of all groups in order, T tokens of all pieces, K positions that have a target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luyen.core.device import to_device
from luyen.core.errors import DataError
from luyen.data.samples import NOT_TRAINED, Sample


@dataclass(frozen=True)
class Group:
    """Sequences that begin with the same prompt."""

    id: str
    sequences: tuple[Sample, ...]

    @property
    def shared(self) -> int:
        """Positions at the start that all have in common and none trains on; each sequence has one more at least."""
        if len(self.sequences) < 2:
            return 0
        first, limit = self.sequences[0], min(len(sequence.tokens) for sequence in self.sequences) - 1
        for sequence in self.sequences:
            differs = sequence.tokens[:limit] != first.tokens[:limit]
            trained = sequence.targets[:limit] != NOT_TRAINED
            stops = np.flatnonzero(differs | trained)
            limit = min(limit, int(stops[0])) if stops.size else limit
        return limit


@dataclass(frozen=True)
class BranchedBatch:
    """Groups one after another, flat: the pieces of each are its trunk, where it has one, and then its sequences' rests."""

    tokens_T: torch.Tensor
    """int64."""
    targets_T: torch.Tensor
    """int64; the token to predict at each position, -100 where none."""
    lengths: tuple[int, ...]
    """Of the pieces."""
    trunks: tuple[int, ...]
    """Of each piece the piece that it goes on from, or -1."""
    sample_ids: tuple[str, ...]
    """Of the groups."""
    sizes: tuple[int, ...]
    """Sequences of each group."""
    num_targets: int
    """Items that the loss sums over; the groups unless the algorithm counts otherwise."""
    last_S: torch.Tensor
    """int64; flat position of each sequence's last token."""
    positions_K: torch.Tensor
    """int64, growing; the positions that have a target."""
    sequence_K: torch.Tensor
    """int64; the sequence that each of them belongs to."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Further numbers by name, as the algorithm needs them (margins of the groups, rewards of the sequences, ...)."""

    @property
    def num_sequences(self) -> int:
        """S."""
        return sum(self.sizes)

    def to(self, device: torch.device | str) -> BranchedBatch:
        """The same batch with its tensors on `device`; the host waits for no GPU."""
        moved: dict[str, Any] = {
            name: to_device(getattr(self, name), device) for name in ("tokens_T", "targets_T", "last_S", "positions_K", "sequence_K")
        }
        columns = {name: to_device(column, device) for name, column in self.columns.items()}
        return dataclasses.replace(self, **moved, columns=columns)

    def share(self, part: int, parts: int) -> BranchedBatch:
        """Part `part` of `parts` pieces: whole groups in their order, about equally many tokens in each, at least one group.

        The batch is on the host. Columns are cut by what their name ends in: _G has a row for each group, _S for each sequence, _K for
        each trained position. Where a loss counts its groups the pieces' counts add up; another count is made anew by its algorithm.
        """
        groups = len(self.sizes)
        if parts == 1:
            return self
        if groups < parts:
            raise DataError(f"a batch of {groups} groups cannot be cut into {parts} pieces")
        pieces, sequences = self._ends()
        tokens = np.concatenate([[0], np.cumsum(self.lengths)])[[0, *pieces]]
        first, last = even_cuts(np.diff(tokens), parts)[part : part + 2]
        begin, end = ([0, *pieces][place] for place in (first, last))
        of, until = ([0, *sequences][place] for place in (first, last))
        start, stop = int(tokens[first]), int(tokens[last])
        trained = np.flatnonzero((self.positions_K.numpy() >= start) & (self.positions_K.numpy() < stop))
        kept = slice(int(trained[0]), int(trained[-1]) + 1) if trained.size else slice(0, 0)
        cuts = {"_G": slice(first, last), "_S": slice(of, until), "_K": kept}
        return dataclasses.replace(
            self, tokens_T=self.tokens_T[start:stop], targets_T=self.targets_T[start:stop], lengths=self.lengths[begin:end],
            trunks=tuple(trunk if trunk < 0 else trunk - begin for trunk in self.trunks[begin:end]),
            sample_ids=self.sample_ids[first:last], sizes=self.sizes[first:last], num_targets=last - first,
            last_S=self.last_S[of:until] - start, positions_K=self.positions_K[kept] - start, sequence_K=self.sequence_K[kept] - of,
            columns={name: column[cuts[name[-2:]]] for name, column in self.columns.items()},
        )  # fmt: skip

    def _ends(self) -> tuple[list[int], list[int]]:
        """Of every group the number of pieces, and of sequences, up to its end."""
        leaders = set(self.trunks) - {-1}
        sequences = np.cumsum(self.sizes).tolist()
        ends = [place + 1 for place in range(len(self.lengths)) if place not in leaders]
        return [ends[count - 1] for count in sequences], sequences


def even_cuts(tokens_N: NDArray[np.int64], parts: int) -> list[int]:
    """Where to cut N items with so many tokens each into `parts` runs of about equally many tokens, none empty; 0 and N included."""
    ends, count = np.cumsum(tokens_N), len(tokens_N)
    wanted = np.searchsorted(ends - tokens_N / 2, ends[-1] * np.arange(1, parts) / parts)
    cuts = [0]
    for number, cut in enumerate(wanted.tolist(), 1):
        cuts.append(min(max(cut, cuts[-1] + 1), count - (parts - number)))
    return [*cuts, count]


def collate_groups(groups: Sequence[Group], share: bool = True, columns: Mapping[str, torch.Tensor] | None = None) -> BranchedBatch:
    """Groups as a batch; `share=False` writes every sequence out whole, for models that must see them so.

    Raises DataError for a group without sequences and for a sequence without tokens.
    """
    pieces: list[tuple[Sample, slice]] = []
    trunks: list[int] = []
    ends: list[int] = []
    for group in groups:
        if not group.sequences or min(len(sequence.tokens) for sequence in group.sequences) < 1:
            raise DataError(f"group {group.id} has an empty sequence or none", expected="tokens in every sequence")
        shared, trunk = group.shared if share else 0, -1
        if shared:
            trunk = len(pieces)
            pieces.append((group.sequences[0], slice(0, shared)))
            trunks.append(-1)
        for sequence in group.sequences:
            ends.append(len(pieces))
            pieces.append((sequence, slice(shared, None)))
            trunks.append(trunk)
    tokens = [sequence.tokens[part] for sequence, part in pieces]
    targets = np.concatenate([sequence.targets[part] for sequence, part in pieces]).astype(np.int64)
    lengths = [len(part) for part in tokens]
    owner = np.full(len(pieces), -1)
    owner[ends] = np.arange(len(ends))
    positions = np.flatnonzero(targets != NOT_TRAINED)
    return BranchedBatch(
        tokens_T=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        targets_T=torch.from_numpy(targets),
        lengths=tuple(lengths),
        trunks=tuple(trunks),
        sample_ids=tuple(group.id for group in groups),
        sizes=tuple(len(group.sequences) for group in groups),
        num_targets=len(groups),
        last_S=torch.from_numpy(np.cumsum(lengths)[ends] - 1),
        positions_K=torch.from_numpy(positions),
        sequence_K=torch.from_numpy(np.repeat(owner, lengths)[positions]),
        columns=dict(columns or {}),
    )
