"""The table of devices: plausible, sourced, found by name."""

import pytest

from luyen.core.errors import ConfigError
from luyen.engine.devices import DEVICES, find, usable_bytes


@pytest.mark.parametrize("name", DEVICES)
def test_every_line_is_plausible_and_has_a_source(name: str) -> None:
    device = DEVICES[name]
    assert device.source.split()[0] in ("NVIDIA", "AMD") and name == name.lower()
    assert 1.9 < device.half / device.single < 17, "half precision by matrix units against plain fp32"
    assert device.peak(True) == device.half * 1e12 and device.peak(False) == device.single * 1e12
    assert 0.85 * device.memory * 1e9 < usable_bytes(device) < device.memory * 1e9
    # Operations for each byte read; and operations for each joule: both of a known order.
    assert 60 < device.peak(True) / (device.bandwidth * 1e9) < 450 and 0.15e12 < device.peak(True) / device.watts < 2.5e12


def test_figures_of_the_sheets() -> None:
    assert (DEVICES["a100"].half, DEVICES["a100"].memory, DEVICES["a100"].watts) == (312, 80, 400)
    assert (DEVICES["h100"].half, DEVICES["h200"].memory, DEVICES["t4"].half) == (989.4, 141, 65)
    assert not DEVICES["t4"].bf16 and not DEVICES["v100"].bf16 and DEVICES["l4"].bf16


def test_names_are_found_and_wrong_ones_answered() -> None:
    assert list(find("H100, a100-40")) == ["h100", "a100-40"]
    with pytest.raises(ConfigError, match="unknown device 'h10'. Did you mean 'h100'"):
        find("h10")
    with pytest.raises(ConfigError, match="unknown device ''"):
        find("h100,")
