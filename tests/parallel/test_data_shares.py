"""How a step's rows are dealt to ranks, and how several processes' words are read, without starting any."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luyen.core import distributed, interrupt
from luyen.core.errors import ConfigError, DataError, Interrupted
from luyen.data.loader import Batch
from luyen.engine.config import ParallelConfig
from luyen.engine.parallel.data import share_out
from luyen.engine.parallel.mesh import Shape


def batch(lengths: list[int], start: int = 0) -> Batch:
    """Samples of these lengths; every third position has no target."""
    tokens = torch.arange(start, start + sum(lengths))
    targets = torch.where(tokens % 3 == 0, -100, tokens)
    return Batch(tokens, targets, tuple(lengths), tuple(f"s{start + i}" for i in range(len(lengths))), int((targets != -100).sum()))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.data())
def test_the_pieces_of_a_batch_are_its_samples_in_order(lengths, data):
    parts = data.draw(st.integers(1, len(lengths)))
    whole = batch(lengths)
    pieces = [whole.share(part, parts) for part in range(parts)]
    assert all(piece.lengths for piece in pieces)
    assert sum((piece.lengths for piece in pieces), ()) == whole.lengths
    assert sum((piece.sample_ids for piece in pieces), ()) == whole.sample_ids
    assert torch.equal(torch.cat([piece.tokens_T for piece in pieces]), whole.tokens_T)
    assert torch.equal(torch.cat([piece.targets_T for piece in pieces]), whole.targets_T)
    assert sum(piece.num_targets for piece in pieces) == whole.num_targets
    assert [piece.tokens_T.numel() for piece in pieces] == [sum(piece.lengths) for piece in pieces]
    if parts > 1:  # one piece is the batch itself, which does not know them here
        assert all(torch.equal(piece.trained_positions_K, (piece.targets_T != -100).nonzero().flatten()) for piece in pieces)


def test_pieces_hold_about_equally_many_tokens():
    sizes = [batch([64] * 16).share(part, 4).tokens_T.numel() for part in range(4)]
    assert sizes == [256] * 4
    with pytest.raises(DataError, match="2 samples cannot be cut into 3"):
        batch([4, 4]).share(0, 3)


@pytest.mark.parametrize(("micro_batches", "readers"), [(1, 1), (4, 2), (2, 4), (3, 2), (6, 4), (1, 3)])
def test_every_sample_of_a_step_is_dealt_once_and_all_readers_do_as_many_passes(micro_batches, readers):
    batches = [batch([5, 9, 3, 7], 100 * number) for number in range(micro_batches)]
    dealt = [share_out(batches, reader, readers) for reader in range(readers)]
    assert len({len(pieces) for pieces in dealt}) == 1
    names = sorted(name for pieces in dealt for piece in pieces for name in piece.sample_ids)
    assert names == sorted(name for whole in batches for name in whole.sample_ids)


def test_the_layout_uses_all_processes_or_says_what_to_change():
    assert Shape.of(ParallelConfig(), 1) == Shape(1, 1, 1)
    assert Shape.of(ParallelConfig(shard=2), 8) == Shape(4, 2, 1)
    assert Shape.of(ParallelConfig(data=2, shard=2, tensor=2), 8).readers == 4
    with pytest.raises(ConfigError, match=r"shard 3 x tensor 1 = 6 processes; expected 8"):
        Shape.of(ParallelConfig(data=2, shard=3), 8)
    with pytest.raises(ConfigError, match="--nproc-per-node 2"):
        Shape.of(ParallelConfig(shard=2), 1)


def test_without_a_launcher_there_is_one_process(monkeypatch, tmp_path):
    for name in distributed.NEEDED:
        monkeypatch.delenv(name, raising=False)
    assert (distributed.ranks(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.told_by_main({"a": 1}) == {"a": 1} and distributed.gather("x") == ["x"]
    with distributed.group(1.0), distributed.own_folder(tmp_path) as folder:
        assert folder == tmp_path
    monkeypatch.setenv("WORLD_SIZE", "4")  # Slurm alone sets it; without the rest nobody can be found
    assert distributed.ranks() == 1


def test_another_rank_writes_into_a_folder_that_goes_away(monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.one_machine() and not distributed.is_main()
    with distributed.own_folder(tmp_path) as folder:
        (folder / "x").touch()
    assert not folder.exists() and not list(tmp_path.iterdir())


def test_a_stop_waits_while_processes_work_together():
    with interrupt.listening():
        interrupt._handle(15, None)
        with interrupt.held():
            interrupt.check()
        with pytest.raises(Interrupted):
            interrupt.check()
