"""What the report says of averages and of the gradient's noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luyen.report.reading import open_run

from .test_watching import figures
from .toy_run import build


def test_the_noise_scale_and_what_a_step_has(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    rows = [{"step": 1, "loss": 3.0, "noise_scale": None}, {"step": 2, "loss": 2.9, "noise_scale": 5120.4}]
    (run / "base" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = run / "base" / "luyen.json"
    found = json.loads(manifest.read_text())
    found["metrics"].update(steps=2, targets=2048)
    manifest.write_text(json.dumps(found))
    assert figures(open_run(run), "base")["Gradient noise scale"] == ("5,120", "targets, at the end; a step has 1,024")


@pytest.mark.parametrize(
    ("train", "figure"),
    [({"optimizer": {"ema_decay": 0.999}}, "decay 0.999"), ({"checkpoint": {"average_last": 5}}, "5 checkpoints"), ({}, None)],
)
def test_which_average_the_model_is(tmp_path: Path, train: dict[str, object], figure: str | None) -> None:
    run = build(tmp_path / "run")
    manifest = run / "base" / "luyen.json"
    found = json.loads(manifest.read_text())
    found["config"]["train"] = {"checkpoint": {"average_last": 1}, "optimizer": {"ema_decay": None}, **train}
    manifest.write_text(json.dumps(found))
    assert figures(open_run(run), "base").get("Average of the weights", (None, ""))[0] == figure
