"""A long run in fp32 on a CPU with units for bf16 is told so; nobody else is."""

import pytest

from luyen.core.config import load
from luyen.engine.config import TrainConfig
from luyen.recipe import training
from luyen.recipe.training import WORTH_TELLING, faster_precision


@pytest.mark.parametrize(
    ("values", "seconds", "fast", "told"),
    [
        ({}, WORTH_TELLING, True, True),
        ({}, WORTH_TELLING - 1, True, False),
        ({}, WORTH_TELLING, False, False),
        ({"precision": "fp32"}, WORTH_TELLING, True, False),
        ({"precision": "bf16"}, WORTH_TELLING, True, False),
    ],
)
def test_who_is_told(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], seconds: float, fast: bool, told: bool) -> None:
    monkeypatch.setattr(training, "multiplies_fast", lambda dtype: fast)
    said = faster_precision(load(TrainConfig, {"device": "cpu", **values}), seconds)
    assert ("train.precision=bf16" in said) == told and bool(said) == told
