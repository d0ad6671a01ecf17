"""Shares of a mixture, pass by pass."""

from collections import Counter

import numpy as np
import pytest

from luyen.core.errors import ConfigError, DataError
from luyen.data.loader import PackedStream
from luyen.data.mixture import Mixture
from luyen.data.samples import Sample
from luyen.data.shuffle import permutation


def source(name: str, count: int) -> list[Sample]:
    ids = np.arange(4, dtype=np.int32)
    return [Sample(f"{name}:{index}", ids[:-1], ids[1:]) for index in range(count)]


def names(mixture: Mixture, epoch: int) -> Counter[str]:
    return Counter(mixture.samples[index].id for index in mixture.order(epoch))


def test_without_weights_an_epoch_is_every_sample_once() -> None:
    mixture = Mixture({"a": source("a", 7), "b": source("b", 20)}, seed=0)
    assert set(names(mixture, 0).values()) == {1} and len(names(mixture, 0)) == 27
    assert mixture.order(0).tolist() != mixture.order(1).tolist()
    assert mixture.order(3).tolist() == Mixture({"a": source("a", 7), "b": source("b", 20)}, seed=0).order(3).tolist()


def test_weights_are_shares_of_samples() -> None:
    mixture = Mixture({"small": source("small", 10), "large": source("large", 90)}, {"small": 1, "large": 3}, seed=0)
    epoch = names(mixture, 0)
    assert sum(count for name, count in epoch.items() if name.startswith("small")) == 25
    assert sum(count for name, count in epoch.items() if name.startswith("large")) == 75
    assert {count for name, count in epoch.items() if name.startswith("large")} == {1}
    assert {epoch[f"small:{index}"] for index in range(10)} == {2, 3}  # whole passes before a sample comes a third time


def test_a_source_used_in_part_continues_where_it_stopped() -> None:
    mixture = Mixture({"a": source("a", 30), "b": source("b", 30)}, {"a": 0.5, "b": 1.5}, seed=7)
    first, second = names(mixture, 0), names(mixture, 1)
    assert {name for name in first if name.startswith("a")}.isdisjoint(second)
    assert sum(count for name, count in (first + second).items() if name.startswith("a")) == 30


def test_shares_hold_in_the_long_run_when_they_do_not_divide() -> None:
    mixture = Mixture({"a": source("a", 3), "b": source("b", 4)}, {"a": 1, "b": 2}, seed=1)
    total = sum((names(mixture, epoch) for epoch in range(30)), Counter())
    assert sum(count for name, count in total.items() if name.startswith("a")) == 70  # 30 epochs of 7 samples, a third of them


def test_the_stream_takes_the_order_of_a_mixture() -> None:
    mixture = Mixture({"a": source("a", 5), "b": source("b", 20)}, {"a": 1, "b": 1}, seed=0)
    stream = PackedStream(mixture.samples, capacity=6, rows=1, seed=0, order=mixture.order)
    assert Counter(index for row in stream.plan(0) for index in row) == Counter(mixture.order(0).tolist())


def test_wrong_weights_are_named() -> None:
    sources = {"chat": source("chat", 2), "code": source("code", 2)}
    with pytest.raises(ConfigError, match="unknown source 'chatt'.*Did you mean 'chat'"):
        Mixture(sources, {"chatt": 1, "code": 1}, seed=0)
    with pytest.raises(ConfigError, match="source 'code' has no weight"):
        Mixture(sources, {"chat": 1}, seed=0)
    with pytest.raises(ConfigError, match="weight of 'code'; found 0"):
        Mixture(sources, {"chat": 1, "code": 0}, seed=0)
    with pytest.raises(DataError, match="source 'code' has no samples"):
        Mixture({"chat": source("chat", 1), "code": []}, seed=0)


def test_permutation_does_not_change_between_machines_and_versions() -> None:
    assert sorted(permutation(100, 5, "x").tolist()) == list(range(100))
    assert permutation(8, 5, "x").tolist() != permutation(8, 6, "x").tolist()
    assert permutation(8, 0, "order", 0).tolist() == [4, 0, 5, 3, 2, 1, 6, 7]
