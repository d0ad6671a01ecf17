"""`torchrun -m luyen.cli.main`: a recipe and a verb alone, whole, with one process that writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from curves import PROJECT, relative

sys.path.insert(0, str(PROJECT / "tests" / "recipe"))

from toy import recipe, write_pages  # noqa: E402 (it lies in another folder of the tests)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def logs(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The stage's log without what depends on the layout."""
    lines = (folder / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "noise_scale"} for line in lines]


LAYOUTS: list[dict[str, dict[str, int]]] = [
    {"base": {"shard": 2}, "chat": {"tensor": 2}},
    {"base": {"pipeline": 2, "pipeline_pieces": 2}, "chat": {"pipeline": 2, "pipeline_pieces": 2}},
]


@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
def test_a_recipe_runs_whole_in_two_processes_as_in_one(tmp_path, torchrun, layouts):
    path = tmp_path / "toy.yaml"
    made = recipe(write_pages(tmp_path / "pages"))
    made["stages"]["base"]["model"] = {**made["stages"]["base"]["model"], "num_layers": 2}  # type: ignore[index]
    for stage, axes in layouts.items():
        made["stages"][stage]["train"] = {**made["stages"][stage]["train"], "parallel": axes}  # type: ignore[index]
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    words = ["-m", "luyen.cli.main", "run", str(path), "--out"]
    two = torchrun(2, *words, str(tmp_path / "two"), timeout=400)
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.count("base: pretrain") == two.stdout.count("report: ") == 1, two.stdout
    plain = [f"{stage}.train.parallel.{axis}=1" for stage, axes in layouts.items() for axis in axes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words, str(tmp_path / "one"), *plain]
    one = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=400)
    assert one.returncode == 0, one.stderr[-3000:]
    for stage in ("base", "chat"):
        pairs = list(zip(logs(tmp_path / "one", stage), logs(tmp_path / "two", stage), strict=True))
        for left, right in pairs:
            assert left.keys() == right.keys()
            assert all(relative(left[key], right[key]) < 1e-5 for key in left), (stage, left, right)
        assert len(pairs) > 4
        files = [[file for file in (tmp_path / run / stage).rglob("*") if file.is_file()] for run in ("one", "two")]
        names = [sorted(file.name for file in found if "checkpoints" not in file.parts) for found in files]  # split weights: in parts there
        assert names[0] == names[1]
    again = torchrun(2, *words, str(tmp_path / "two"), timeout=400)
    assert again.returncode == 0 and again.stdout.count("up to date") == 6, again.stdout


def test_wrong_settings_end_all_processes(tmp_path, torchrun):
    corpus = tmp_path / "text.txt"
    corpus.write_text("some words\n\nmore words\n", encoding="utf-8")
    done = torchrun(2, "-m", "luyen.cli.main", "pretrain", f"data={corpus}", "tokenizer=nowhere", "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "no such file or folder 'nowhere'" in done.stderr
