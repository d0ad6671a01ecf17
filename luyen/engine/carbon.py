"""Energy and CO2 from device hours, as Llama 2 counts them (arXiv:2307.09288, section 2.2.1 and table 2).

    kWh = hours x watts / 1000 x PUE        grams of CO2 = kWh x intensity

Watts are the most that a device may take, so the figure is an upper bound for the devices and leaves out the rest of their computer;
PUE (power usage effectiveness) is what a data centre takes for each kWh of its computers. The intensity of the grid is the user's, or
the yearly mean of a country that codecarbon's table holds (Our World in Data; installed with the extra `carbon`; nothing is fetched).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from luyen.core.errors import ConfigError, nearest

JOULES = 3.6e6
"""In a kWh."""
TABLE = Path("data") / "private_infra" / "global_energy_mix.json"
"""Countries and their grids, inside the codecarbon package."""


def kilowatt_hours(device_hours: float, watts: float, pue: float = 1.0) -> float:
    """Energy of so many device hours at `watts` each, with the data centre's share."""
    return device_hours * watts / 1000 * pue


def from_joules(joules: float, pue: float = 1.0) -> float:
    """kWh of measured joules, with the data centre's share."""
    return joules / JOULES * pue


def grams(kwh: float, intensity: float) -> float:
    """Grams of CO2 (equivalent) of an energy at `intensity` grams a kWh."""
    return kwh * intensity


def intensity(text: str, name: str = "--carbon") -> float:
    """Grams of CO2 a kWh from a number, or from a country's ISO code of three letters such as FRA by codecarbon's table.

    Raises ConfigError about `name` for anything else, for an unknown country, and where codecarbon is not installed.
    """
    try:
        value = float(text)
    except ValueError:
        return _of_country(text.strip().upper(), name)
    if not 0 <= value < float("inf"):
        raise ConfigError(name, found=text, expected="grams of CO2 a kWh, 0 or more")
    return value


def _of_country(code: str, name: str) -> float:
    if len(code) != 3 or not code.isalpha():
        raise ConfigError(name, found=repr(code), expected="grams of CO2 a kWh, or a country's three letters such as FRA")
    package = importlib.util.find_spec("codecarbon")
    if package is None or package.origin is None:
        raise ConfigError(
            f"{name} {code} needs codecarbon's table of countries",
            fix="pip install '.[carbon]' in luyen's folder, or give grams a kWh, such as 400.",
        )
    countries = json.loads((Path(package.origin).parent / TABLE).read_text(encoding="utf-8"))
    if code not in countries or not isinstance(countries[code].get("carbon_intensity"), int | float):
        raise ConfigError(f"{name}: no country {code!r} in codecarbon's table", fix=nearest(code, countries)[:300])
    return float(countries[code]["carbon_intensity"])
