"""A checkpoint of the last release is read by the code of today and ends as that release would have ended it."""

import json
import shutil
from pathlib import Path

import pytest
import release_run
import torch
from safetensors.torch import load_file

from luyen.core import manifest, progress

DATA = Path(__file__).parent / "data" / "release"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def same_arithmetic(tmp_path_factory):
    """Whether the code of today, from nothing, ends in the release's bits here.

    It does not on a CPU with other instructions, with another torch, or where a formula is computed in another order since: then the last
    bits tell nothing of a checkpoint, and 1e-6 is asked for.
    """
    folder = tmp_path_factory.mktemp("release") / "whole"
    weights, expected = release_run.run(folder), load_file(DATA / "expected.safetensors")
    assert all(torch.allclose(expected[name], weights[name], rtol=0, atol=1e-6) for name in expected)
    return release_run.digest(folder) == EXPECTED["sha256"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_of_the_last_release_goes_on_to_the_same_end(tmp_path, capsys, asynchronous, monkeypatch, same_arithmetic):
    """To the bit where the arithmetic is the same, else within 1e-6."""
    progress.use(progress.Plain())
    monkeypatch.setitem(release_run.TRAIN, "checkpoint", {**release_run.TRAIN["checkpoint"], "asynchronous": asynchronous})
    folder = tmp_path / "run"
    shutil.copytree(DATA / "run", folder)
    weights = release_run.run(folder)
    said = capsys.readouterr().out
    assert f"continuing after step {release_run.STOP} " in said and "lost" not in said
    if same_arithmetic:
        assert release_run.digest(folder) == EXPECTED["sha256"]
    expected = load_file(DATA / "expected.safetensors")
    assert expected.keys() == weights.keys()
    assert all(torch.allclose(expected[name], weights[name], rtol=0, atol=1e-6) for name in expected)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(EXPECTED["metrics"])
    for found, row in zip(rows, EXPECTED["metrics"], strict=True):
        noise = found.pop("noise_scale", 0.0), row.get("noise_scale", 0.0)  # a quotient of small differences
        assert noise[0] == pytest.approx(noise[1], rel=1e-3)
        assert found == pytest.approx({name: value for name, value in row.items() if name != "noise_scale"}, abs=1e-6)


def test_the_fixture_is_whole_and_of_the_format_without_a_number():
    [folder] = (DATA / "run" / "checkpoints").iterdir()
    manifest.verify(folder)
    assert "format" not in json.loads((folder / "state.json").read_text(encoding="utf-8"))
