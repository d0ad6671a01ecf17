"""Twenty steps of the toy model: the same numbers as when they were recorded, and the same bits in two runs.

After a wanted change of the numbers: `python tests/algorithms/test_golden_curve.py`, and say in the commit what moved and why.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "pretrain.json"
sys.path.insert(0, str(HERE.parent))

from training_toys import toy_algorithm, toy_config  # noqa: E402 (the file is also a program)

from luyen.engine.trainer import fit  # noqa: E402

VARIANTS = {
    "adamw": {"accumulation": 2},
    "muon": {"optimizer": {"name": "muon", "learning_rate": 1e-2}, "schedule": {"name": "wsd"}},
}


def curve(variant: str, folder: Path) -> list[dict[str, float]]:
    """Rows of the log of twenty steps."""
    fit(toy_algorithm(rows=4), toy_config(steps=20, **VARIANTS[variant]), folder, seed=1)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_curve_is_the_recorded_one(variant, tmp_path):
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[variant]
    found = curve(variant, tmp_path)
    assert len(found) == len(expected) == 20
    for row, golden in zip(found, expected, strict=True):
        assert row.keys() - {"noise_scale"} == golden.keys()  # recorded before that was logged
        for key, value in golden.items():
            assert row[key] == pytest.approx(value, rel=1e-5), (row["step"], key)


def test_two_runs_give_the_same_bits(tmp_path):
    assert curve("adamw", tmp_path / "a") == curve("adamw", tmp_path / "b")


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = {}
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as scratch:
            recorded[name] = curve(name, Path(scratch))
    lines = [f'  "{name}": [\n    ' + ",\n    ".join(map(json.dumps, rows)) + "\n  ]" for name, rows in recorded.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
