"""What the report says of a run besides its curves."""

from __future__ import annotations

import json
from pathlib import Path

from luyen.report.blocks import Cell, Facts, Heading, Limits, Table
from luyen.report.model_sections import training
from luyen.report.reading import Run, open_run
from luyen.report.run_sections import stages

from .toy_run import build


def figures(run: Run, stage: str) -> dict[str, tuple[str, str]]:
    """Label -> figure and remark of a training stage."""
    blocks = training(run, Limits()).blocks
    place = next(index for index, block in enumerate(blocks) if isinstance(block, Heading) and block.title.startswith(stage))
    facts = next(block for block in blocks[place:] if isinstance(block, Facts))
    return {label: (figure, remark) for label, figure, remark in facts.items}


def changed(folder: Path, **metrics: object) -> None:
    path = folder / "luyen.json"
    found = json.loads(path.read_text())
    found["metrics"].update(metrics)
    path.write_text(json.dumps(found))


def test_times_rate_jumps_and_an_early_end(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    parts = {"data": 0.002, "forward": 0.05, "backward": 0.1, "update": 0.04, "communication": 0.0, "wait": 0.0, "other": 0.008}
    rows = [{"step": step, "seconds": 0.2, **parts, "tokens_per_second": 100, "mfu": 0.4 + step / 1000} for step in range(1, 11)]
    rows += [{"step": 10, "evaluate": 5.0}, {"step": 10, "save": 1.0}]
    (run / "base" / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed(run / "base", ended="tokens", alarms=2)
    resolved = run / "base" / "luyen.json"
    found = json.loads(resolved.read_text())
    found["config"]["train"] = {"steps": 1000}
    resolved.write_text(json.dumps(found))
    told = figures(open_run(run), "base")
    assert told["Time of a step"][0].replace("\u00a0", " ") == "data 1 %, forward 25 %, backward 50 %, update 20 %, the rest 4 %"
    assert told["Rate used"][0].replace("\u00a0", " ") == "40.6 %"
    assert told["Jumps"][0] == "2 jumps"
    assert told["Steps"] == ("600", "of 1,000 planned, ended by its number of tokens")


def test_a_run_that_ended_early_is_compared_with_the_estimate_of_its_steps(tmp_path: Path) -> None:
    """Estimated are 120 s for 1,000 steps; 600 of them, 72 s, were done in 104.3 s."""
    folder = build(tmp_path / "run") / "base" / "luyen.json"
    found = json.loads(folder.read_text())
    found["config"]["train"] = {"steps": 1000}
    folder.write_text(json.dumps(found))
    changed(folder.parent, ended="plateau", steps=600)
    run = open_run(folder.parents[1])
    said = "45 % more than the 1 min 12 s expected for 600 of 1,000 steps"
    assert figures(run, "base")["Time"][1].replace("\u00a0", " ") == said
    table = next(block for block in stages(run, Limits()).blocks if isinstance(block, Table))
    notes = {row[0].text: row[2].note for row in table.rows if isinstance(row[0], Cell) and isinstance(row[2], Cell)}
    assert notes["base"].replace("\u00a0", " ") == said
    changed(folder.parent, ended="steps", steps=1000)
    assert figures(open_run(folder.parents[1]), "base")["Time"][1].replace("\u00a0", " ") == "13 % less than the 2 min 00 s expected"


def test_a_run_of_before_says_nothing_of_them(finished_run: Path) -> None:
    told = figures(open_run(finished_run), "base")
    assert not {"Time of a step", "Rate used", "Jumps"} & set(told)
