"""How tensors get to a device: no copy to a GPU may make the host wait."""

import pytest
import torch

from luyen.core import device
from luyen.core.device import to_device


@pytest.fixture
def pinned(monkeypatch):
    """A device that reads pinned memory, without numbers; the tensors that were pinned for it."""
    found = []
    monkeypatch.setattr(device, "PINS", ("meta",))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: found.append(tensor) or tensor)
    return found


def test_a_copy_to_a_gpu_starts_from_pinned_memory_and_returns_at_once(pinned, monkeypatch):
    asked = []
    plain = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *wanted, **how: asked.append(how) or plain(tensor, *wanted, **how))
    tensor = torch.arange(3)
    for place in ("meta", torch.device("meta")):
        assert to_device(tensor, place).device.type == "meta"
    assert pinned == [tensor, tensor] and asked == [{"non_blocking": True}] * 2


def test_other_ways_pin_nothing_and_wait(pinned):
    """A tensor that comes back from a device must be there when it is read."""
    there, here = torch.empty(3, device="meta"), torch.arange(3)
    assert to_device(there, "meta") is there
    assert to_device(here, "cpu") is here and to_device(here, None) is here
    with pytest.raises(NotImplementedError):
        to_device(there, "cpu")
    assert pinned == []
