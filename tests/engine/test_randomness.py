"""A checkpoint holds the generators of every process that drew something else, and each gets its own back."""

import json
import random

import pytest
import torch

from luyen.core import distributed
from luyen.core.random_state import random_state
from luyen.engine import randomness
from luyen.engine.randomness import restore_own, states_of_all


@pytest.fixture
def three(monkeypatch):
    """Three processes of which the last has drawn more than the others; `three(rank)` is one of them."""
    torch.manual_seed(0)
    random.seed(0)
    same = random_state()
    torch.rand(5)
    other = random_state()
    monkeypatch.setattr(distributed, "ranks", lambda: 3)

    def everyone(own):
        hexed = {name: bytes(state.tolist()).hex() for name, state in other.items()}
        return json.loads(json.dumps([own, own, hexed]))

    monkeypatch.setattr(distributed, "gather", everyone)

    def become(rank):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        randomness.restore_random_state(same)
        return same, other

    return become


def test_only_what_differs_is_added(three):
    same, _ = three(0)
    states = states_of_all()
    assert {name for name in states if "/" not in name} == set(same)
    assert {name.split("/")[0] for name in states if "/" in name} == {"rank2"}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_goes_on_with_its_own(three, rank):
    same, other = three(rank)
    states = states_of_all()
    torch.rand(3)
    restore_own(states)
    assert torch.equal(torch.get_rng_state(), (other if rank == 2 else same)["torch"])


def test_one_process_has_its_own_alone():
    assert states_of_all().keys() == random_state().keys()
    before = states_of_all()
    torch.rand(2)
    restore_own(before)
    assert torch.equal(torch.get_rng_state(), before["torch"])
