"""Answers that share a prompt as one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luyen.core.errors import DataError
from luyen.data.branches import Group, collate_groups
from luyen.data.samples import NOT_TRAINED, Sample


def sequence(ids: list[int], prompt: int) -> Sample:
    """The first `prompt` of the ids are given, the others trained."""
    targets = [NOT_TRAINED] * (prompt - 1) + ids[prompt:]
    return Sample("s", np.array(ids[:-1], np.int32), np.array(targets, np.int32))


PAIR = Group("pair", (sequence([1, 2, 3, 7, 8, 9], 3), sequence([1, 2, 3, 7, 5], 3)))
SINGLE = Group("single", (sequence([4, 5, 6], 1),))


def test_the_prompt_is_read_once_without_its_last_token() -> None:
    batch = collate_groups([PAIR, SINGLE])
    assert batch.tokens_T.tolist() == [1, 2, 3, 7, 8, 3, 7, 4, 5]
    assert batch.lengths == (2, 3, 2, 2) and batch.trunks == (-1, 0, 0, -1)
    assert batch.targets_T.tolist() == [-100, -100, 7, 8, 9, 7, 5, 5, 6]
    assert batch.positions_K.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert batch.sequence_K.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert batch.last_S.tolist() == [4, 6, 8]
    assert batch.sizes == (2, 1) and batch.num_targets == 2 and batch.num_sequences == 3


def test_written_out_when_nothing_may_be_shared() -> None:
    batch = collate_groups([PAIR], share=False)
    assert batch.tokens_T.tolist() == [1, 2, 3, 7, 8, 1, 2, 3, 7]
    assert batch.lengths == (5, 4) and batch.trunks == (-1, -1) and batch.last_S.tolist() == [4, 8]


def test_what_is_trained_in_both_is_not_shared() -> None:
    turns = Group("turns", (sequence([1, 2, 3, 4, 5], 2), sequence([1, 2, 3, 4, 6], 2)))
    assert turns.shared == 1 and PAIR.shared == 2


def test_one_that_ends_where_the_other_goes_on_keeps_a_token() -> None:
    bare = Sample("a", np.array([1, 2], np.int32), np.full(2, NOT_TRAINED, np.int32))
    longer = Sample("b", np.array([1, 2, 3], np.int32), np.full(3, NOT_TRAINED, np.int32))
    batch = collate_groups([Group("g", (bare, longer))])
    assert batch.lengths == (1, 1, 2) and batch.last_S.tolist() == [1, 3]


def test_columns_move_with_the_batch() -> None:
    batch = collate_groups([PAIR], columns={"margins_G": torch.ones(1)}).to("meta")
    assert batch.columns["margins_G"].device.type == batch.last_S.device.type == "meta"


def test_an_empty_sequence_is_refused() -> None:
    empty = Sample("e", np.array([], np.int32), np.array([], np.int32))
    with pytest.raises(DataError, match="group g"):
        collate_groups([Group("g", (empty,))])


@pytest.mark.parametrize("share", [True, False])
def test_a_part_is_what_its_groups_make(share: bool) -> None:
    groups = [PAIR, SINGLE, PAIR, Group("last", (sequence([9, 8, 7], 1),))]
    columns = {"margins_G": torch.arange(4.0), "reference_S": torch.arange(6.0), "old_K": torch.arange(14.0)}
    whole = collate_groups(groups, share, columns)
    parts = [whole.share(part, 3) for part in range(3)]
    assert sum(len(part.sizes) for part in parts) == 4
    begin = of = at = 0
    for part in parts:
        count = len(part.sizes)
        alone = collate_groups(groups[begin : begin + count], share)
        for name in ("tokens_T", "targets_T", "last_S", "positions_K", "sequence_K"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
        for name in ("lengths", "trunks", "sample_ids", "sizes", "num_targets"):
            assert getattr(part, name) == getattr(alone, name), name
        assert part.columns["margins_G"].tolist() == list(range(begin, begin + count))
        assert part.columns["reference_S"].tolist() == list(range(of, of + part.num_sequences))
        assert part.columns["old_K"].tolist() == list(range(at, at + len(part.positions_K)))
        begin, of, at = begin + count, of + part.num_sequences, at + len(part.positions_K)
    assert whole.share(0, 1) is whole
    with pytest.raises(DataError, match="4 groups cannot be cut into 5"):
        whole.share(0, 5)
