"""Llama 2's table of GPU hours, watts and tonnes of CO2; the grid's intensity from a number or a country."""

import importlib.util
import json
from pathlib import Path

import pytest

from luyen.core.errors import ConfigError
from luyen.engine import carbon, cost
from luyen.engine.carbon import from_joules, grams, intensity, kilowatt_hours
from luyen.engine.devices import DEVICES
from luyen.models.presets import preset

TABLE_2 = [(184_320, 400, 31.22), (368_640, 400, 62.44), (1_038_336, 350, 153.90), (1_720_320, 400, 291.42)]
"""arXiv:2307.09288, table 2: GPU hours, watts, tonnes. What they imply is 0.4235 kg a kWh: 0.385 kg of the grid at a PUE of 1.1."""


@pytest.mark.parametrize(("hours", "watts", "tonnes"), TABLE_2)
def test_the_table_of_llama_2(hours: int, watts: int, tonnes: float) -> None:
    assert grams(kilowatt_hours(hours, watts, pue=1.1), 385) / 1e6 == pytest.approx(tonnes, rel=0.01)


def test_the_sum_of_llama_2() -> None:
    total = sum(grams(kilowatt_hours(hours, watts, pue=1.1), 385) for hours, watts, _ in TABLE_2)
    assert total / 1e6 == pytest.approx(539.0, rel=0.01)


@pytest.mark.parametrize(("name", "hours"), [("llama-2-7b", 184_320), ("llama-2-13b", 368_640), ("llama-2-70b", 1_720_320)])
def test_llama_2s_hours_are_those_of_a_usual_share_of_the_peak(name: str, hours: int) -> None:
    """2.0 trillion tokens on A100s: the operations that are counted here over those that the hours could have done."""
    done = cost.operations(preset(name, 32_000), 4096).training * 2.0e12
    share = done / (hours * 3600 * DEVICES["a100"].peak(half=True))
    assert 0.35 < share < 0.55


def test_a_kwh_is_3_6_million_joules() -> None:
    assert from_joules(7.2e6) == 2.0
    assert kilowatt_hours(10, 300) == 3.0 and kilowatt_hours(10, 300, pue=1.5) == 4.5


def test_a_number_is_taken_as_it_is() -> None:
    assert intensity("400") == 400 and intensity("0") == 0 and intensity("4.5e2") == 450


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "France", "12x", ""])
def test_what_is_no_intensity_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--carbon"):
        intensity(wrong)


def test_a_country_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[carbon\]'"):
        intensity("FRA")


def test_a_country_is_read_from_codecarbons_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / carbon.TABLE
    table.parent.mkdir(parents=True)
    rows = {"FRA": {"carbon_intensity": 56.039, "country_name": "France"}, "XXX": {"country_name": "nowhere"}}
    table.write_text(json.dumps(rows), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("codecarbon", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert intensity("fra") == 56.039
    for unknown in ("FRB", "XXX"):
        with pytest.raises(ConfigError, match=f"no country '{unknown}'"):
            intensity(unknown)


def test_the_installed_table_has_the_form_that_is_read() -> None:
    if importlib.util.find_spec("codecarbon") is None:
        pytest.skip("codecarbon is not installed")
    assert 10 < intensity("FRA") < 200 < intensity("VNM") < 900
