"""Twelve steps of the toy model on toy pairs: the same numbers as when they were recorded, and no read from the device within a loss.

After a wanted change of the numbers: `python -m tests.algorithms.test_preference_curves`, and say in the commit what moved and why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luyen.algorithms.dpo import DPO
from luyen.algorithms.kto import GOOD, KTO
from luyen.data.branches import Group
from luyen.data.pairs import GroupStream
from luyen.engine.trainer import fit
from luyen.objectives.preference import PreferenceLoss
from tests.algorithms.preference_toys import answer, frozen, pairs, rows
from tests.training_toys import toy_config, toy_model

GOLDEN = Path(__file__).parents[1] / "golden" / "preferences.json"
NAMES = ("sigmoid", "ipo", "orpo", "simpo", "kto")
KEYS = ("loss", "gradient_norm", "accuracy", "margin", "kl", "chosen_drift", "baseline")


def algorithm(name: str) -> DPO | KTO:
    model, objective = toy_model(), PreferenceLoss(name, gamma=0.5)
    if name != "kto":
        return DPO(model, GroupStream(pairs(), size=2, seed=0), frozen(model), objective)
    made = rows()
    groups = [Group(f"row:{place}", (answer(given, own), answer(given, made[place - 1][1]))) for place, (given, own, _) in enumerate(made)]
    return KTO(model, GroupStream(groups, size=3, seed=0, columns={GOOD: torch.arange(6) % 2 == 0}), frozen(model), objective)


def curve(name: str, folder: Path) -> list[dict[str, float]]:
    """Figures of twelve steps of two micro-batches."""
    fit(algorithm(name), toy_config(steps=12, accumulation=2), folder, seed=1)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in ("step", *KEYS) if key in row} for row in log]


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    found = curve(name, tmp_path)
    assert len(found) == len(expected) == 12
    for row, golden in zip(found, expected, strict=True):
        assert row.keys() == golden.keys()
        for key, value in golden.items():
            assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (row["step"], key)


class Scalars(TorchDispatchMode):
    """Numbers read one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_reads_nothing_from_the_device(name: str) -> None:
    own = algorithm(name)
    batch, _ = next(own.batches(None))
    with Scalars() as scalars:
        own.loss(batch)
    assert scalars.count == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = {}
    for each in NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            recorded[each] = curve(each, Path(scratch))
    lines = [f'  "{name}": [\n    ' + ",\n    ".join(map(json.dumps, found)) + "\n  ]" for name, found in recorded.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
