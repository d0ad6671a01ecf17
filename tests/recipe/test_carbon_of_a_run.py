"""CO2 of a run: from the energy that was measured, where the grid is named, in the manifest and in the report."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_recipe  # noqa: E402

from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError  # noqa: E402
from luyen.engine import run as engine_run  # noqa: E402
from luyen.engine.config import TrainConfig  # noqa: E402
from luyen.engine.trainer import check  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402
from luyen.recipe.run import run  # noqa: E402
from luyen.report.wording import carbon  # noqa: E402


@pytest.mark.parametrize(("joules", "expected"), [(7200.0, 1.0), (None, None)])
def test_measured_energy_becomes_grams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joules: float | None, expected: float | None
) -> None:
    monkeypatch.setattr(engine_run.EnergyMeter, "joules", lambda meter: joules)
    words = ["base.train.steps=1", "base.train.watch.carbon=500"]
    made = plan(write_recipe(tmp_path), parse_overrides(words))
    run(dataclasses.replace(made, stages=made.stages[:3]), tmp_path / "run")
    assert json.loads((tmp_path / "run/base/luyen.json").read_text()).get("grams_co2") == expected


def test_a_wrong_grid_is_told_before_the_run() -> None:
    with pytest.raises(ConfigError, match="train.watch.carbon"):
        check(load(TrainConfig, {"device": "cpu", "watch": {"carbon": -4}}))


def test_grams_are_said_with_their_unit() -> None:
    assert carbon(None) == "" and carbon(1.234).endswith("g CO2") and carbon(1500).startswith("1.5") and "kg" in carbon(1500)
