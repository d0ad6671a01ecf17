"""Processes that share pairs learn what one does, with the reference in the same model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parallel.preference_driver import main

DRIVER = str(Path(__file__).parent / "preference_driver.py")
Start = Callable[..., subprocess.CompletedProcess[str]]
FIGURES = ("loss", "gradient_norm", "margin", "accuracy", "kl", "chosen_drift")


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "before"), [("data", []), ("shard", []), ("data", ["before"])])
def test_two_processes_learn_what_one_does(axis: str, before: list[str], torchrun: Start, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    main(one, 5, "", bool(before))
    result = torchrun(2, DRIVER, str(two), "5", axis, *before)
    assert result.returncode == 0, result.stderr[-3000:]
    for own, other in zip(rows(one), rows(two), strict=True):
        for name in FIGURES:
            assert other[name] == pytest.approx(own[name], abs=2e-5), f"step {own['step']}: {name}"
    assert rows(one)[-1]["margin"] != 0
