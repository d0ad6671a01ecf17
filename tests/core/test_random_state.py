"""Every generator's state goes out and comes back, also that of a device that this machine has not."""

import random

import numpy
import pytest
import torch

from luyen.core.random_state import random_state, restore_random_state, seed_everything


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), numpy.random.random(), numpy.random.normal(), torch.rand(()).item()]


def test_what_was_drawn_is_drawn_again() -> None:
    seed_everything(3)
    drawn()
    kept = random_state()
    first = drawn()
    assert drawn() != first
    restore_random_state(kept)
    assert drawn() == first
    assert all(tensor.dtype == torch.uint8 and tensor.dim() == 1 for tensor in kept.values())


def test_mps_is_kept_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([1, 2, 3], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    kept = random_state()
    assert torch.equal(kept["mps"], states[0])
    states.append(torch.tensor([9, 9, 9], dtype=torch.uint8))
    restore_random_state(kept)
    assert torch.equal(states[-1], states[0])
    length = len(states)
    del kept["mps"]  # a checkpoint of another machine
    restore_random_state(kept)
    assert len(states) == length
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "mps" not in random_state()
