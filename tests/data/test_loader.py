"""The stream: complete epochs, exact resume at every position, and the same samples however rows are grouped."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from luyen.core.errors import DataError
from luyen.core.random_state import random_state
from luyen.data.loader import Batch, PackedStream
from luyen.data.mixture import Mixture
from luyen.data.samples import NOT_TRAINED, Sample


def make_samples(count: int, longest: int = 30, name: str = "s") -> list[Sample]:
    generator = np.random.default_rng(count)
    samples = []
    for index in range(count):
        ids = generator.integers(0, 1000, int(generator.integers(2, longest + 2))).astype(np.int32)
        targets = ids[1:].copy()
        targets[: len(targets) // 3] = NOT_TRAINED
        samples.append(Sample(f"{name}:{index}", ids[:-1], targets))
    return samples


def key(batch: Batch) -> tuple[list[int], list[int], tuple[int, ...], tuple[str, ...], int]:
    return batch.tokens_T.tolist(), batch.targets_T.tolist(), batch.lengths, batch.sample_ids, batch.num_targets


def take(stream: PackedStream, count: int, state: dict | None = None) -> list[tuple[Batch, dict]]:
    return list(itertools.islice(stream.batches(state), count))


def test_an_epoch_holds_every_sample_once_and_rows_fit() -> None:
    samples = make_samples(50)
    stream = PackedStream(samples, capacity=40, rows=1, seed=3)
    for epoch in range(3):
        plan = stream.plan(epoch)
        assert sorted(index for row in plan for index in row) == list(range(50))
        assert max(sum(len(samples[index].tokens) for index in row) for row in plan) <= 40
    assert stream.plan(0) != stream.plan(1)


def test_plan_is_a_pure_function_of_seed_and_epoch() -> None:
    samples = make_samples(50)
    forwards = PackedStream(samples, capacity=40, rows=1, seed=3)
    plans = [forwards.plan(epoch) for epoch in range(4)]
    backwards = PackedStream(samples, capacity=40, rows=7, seed=3)
    assert [backwards.plan(epoch) for epoch in (3, 2, 1, 0)] == plans[::-1]
    assert PackedStream(samples, capacity=40, rows=1, seed=4).plan(0) != plans[0]


def test_a_batch_is_the_samples_themselves_flat_and_without_padding() -> None:
    samples = {sample.id: sample for sample in make_samples(30)}
    for batch, _ in take(PackedStream(list(samples.values()), capacity=64, rows=3, seed=0), 10):
        assert batch.tokens_T.dtype == batch.targets_T.dtype == torch.int64
        assert sum(batch.lengths) == len(batch.tokens_T) == len(batch.targets_T) <= 3 * 64
        parts = zip(batch.sample_ids, batch.tokens_T.split(batch.lengths), batch.targets_T.split(batch.lengths), strict=True)
        for name, tokens, targets in parts:
            assert tokens.tolist() == samples[name].tokens.tolist()
            assert targets.tolist() == samples[name].targets.tolist()
        assert batch.num_targets == int((batch.targets_T != NOT_TRAINED).sum())
        assert key(batch.to("cpu")) == key(batch)
        assert torch.equal(batch.trained_positions_K, (batch.targets_T != NOT_TRAINED).nonzero().flatten())
        assert torch.equal(batch.to("cpu").trained_positions_K, batch.trained_positions_K)


def test_trained_positions_that_are_not_all_of_them_are_refused() -> None:
    batch = next(PackedStream(make_samples(30), capacity=64, rows=3, seed=0).batches())[0]
    with pytest.raises(ValueError, match="1 trained positions for"):
        dataclasses.replace(batch, trained_positions_K=torch.tensor([0]))


def test_a_stream_leaves_the_random_numbers_alone() -> None:
    """So its batches may be made before their step."""
    samples = make_samples(40)
    mixture = Mixture({"a": samples[:30], "b": samples[30:]}, {"a": 1.0, "b": 2.0}, seed=0)
    for stream in (
        PackedStream(samples, capacity=48, rows=3, seed=1),
        PackedStream(mixture.samples, capacity=48, rows=3, seed=1, order=mixture.order),
    ):
        before = random_state()
        assert take(stream, 25)[-1][1]["epoch"] >= 2
        after = random_state()
        assert before.keys() == after.keys() and all(torch.equal(after[name], state) for name, state in before.items())


def test_resume_at_every_position_equals_the_uninterrupted_stream() -> None:
    samples = make_samples(40)
    whole = take(PackedStream(samples, capacity=48, rows=3, seed=1), 25)
    assert whole[-1][1]["epoch"] >= 2  # epochs are crossed, also within a batch
    for position, (_, state) in enumerate(whole[:-1]):
        restored = json.loads(json.dumps(state))
        rest = take(PackedStream(samples, capacity=48, rows=3, seed=1), len(whole) - position - 1, restored)
        assert [(key(batch), state) for batch, state in rest] == [(key(batch), state) for batch, state in whole[position + 1 :]]


def test_no_sample_is_repeated_or_skipped_across_a_resume() -> None:
    samples = make_samples(40)
    rows_per_epoch = len(PackedStream(samples, capacity=48, rows=1, seed=1).plan(0))
    first = take(PackedStream(samples, capacity=48, rows=1, seed=1), 7)
    rest = take(PackedStream(samples, capacity=48, rows=1, seed=1), rows_per_epoch - 7, first[-1][1])
    seen = Counter(name for batch, _ in first + rest for name in batch.sample_ids)
    assert seen == Counter(sample.id for sample in samples)


def test_eight_batches_of_one_row_are_one_batch_of_eight_rows() -> None:
    samples = make_samples(45)
    large = take(PackedStream(samples, capacity=40, rows=8, seed=5), 6)
    small = take(PackedStream(samples, capacity=40, rows=1, seed=5), 48)
    for index, (batch, state) in enumerate(large):
        group = [key(part) for part, _ in small[8 * index : 8 * index + 8]]
        tokens, targets, lengths, ids, counts = zip(*group, strict=True)
        assert key(batch) == (sum(tokens, []), sum(targets, []), sum(lengths, ()), sum(ids, ()), sum(counts))
        assert state == small[8 * index + 7][1]


def test_a_batch_larger_than_an_epoch_takes_several_epochs() -> None:
    stream = PackedStream(make_samples(3, longest=5), capacity=100, rows=4, seed=0)
    batch, state = take(stream, 1)[0]
    assert Counter(batch.sample_ids) == {"s:0": 4, "s:1": 4, "s:2": 4}
    assert (state["epoch"], state["row"]) == (3, 1)


def test_a_state_of_other_data_is_refused() -> None:
    samples = make_samples(20)
    state = take(PackedStream(samples, capacity=40, rows=2, seed=0), 1)[0][1]
    changed = [Sample(samples[0].id, samples[0].tokens, samples[0].targets + 1), *samples[1:]]
    for stream in (
        PackedStream(changed, capacity=40, rows=2, seed=0),
        PackedStream(samples, capacity=41, rows=2, seed=0),
        PackedStream(samples, capacity=40, rows=2, seed=1),
        PackedStream(samples, capacity=40, rows=2, seed=0, order=lambda epoch: np.arange(20)),
    ):
        with pytest.raises(DataError, match="cannot continue"):
            next(stream.batches(state))
    next(PackedStream(samples, capacity=40, rows=9, seed=0).batches(state))  # the batch size is free


def test_wrong_input_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="no samples"):
        PackedStream([], capacity=8, rows=1, seed=0)
    with pytest.raises(DataError, match="sample s:.* does not fit a row; found .* tokens; expected at most 3"):
        PackedStream(make_samples(5), capacity=3, rows=1, seed=0)
