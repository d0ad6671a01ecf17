"""Compare what two runs of the driver left in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

PROJECT = Path(__file__).parent.parent.parent
STEPS = 20
BASE: dict[str, Any] = {"steps": STEPS, "accumulation": 2, "evaluate_every": 5, "precision": "fp32"}


def layout(**axes: int) -> dict[str, Any]:
    """A job of twenty steps in this layout."""
    return {"config": {**BASE, "parallel": axes}}


def rows(folder: Path) -> list[dict[str, float]]:
    """The log, without the noise scale: it looks at the first micro-batch of a step, which is another one in every layout."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "noise_scale"} for row in found]


def result(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What `fit` returned or raised."""
    return json.loads((folder / (f"result-{rank}.json" if rank else "result.json")).read_text(encoding="utf-8"))


def relative(one: float, other: float) -> float:
    """Difference over size."""
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest relative difference of every figure of the logs, of the first step's gradients and of the last weights.

    Gradients and weights: the largest difference in a tensor over the largest number in it.
    """
    left, right = rows(one), rows(other)
    assert [row.keys() for row in left] == [row.keys() for row in right]
    names = {name for row in left for name in row}
    found = {name: max(relative(a[name], b[name]) for a, b in zip(left, right, strict=True) if name in a) for name in names}
    for kind in ("gradients", "weights"):
        a, b = load_file(one / f"{kind}.safetensors"), load_file(other / f"{kind}.safetensors")
        assert a.keys() == b.keys()
        found[kind] = max(float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a)
    return found


def check_equal(one: Path, other: Path) -> None:
    """The same curve within 1e-6 and the same gradients; the weights as AdamW leaves them after twenty steps from that rounding."""
    found = differences(one, other)
    for name in ("step", "tokens", "targets", "learning_rate", "samples"):
        assert found[name] == 0, name
    for name in ("loss", "gradient_norm", "mean", "gradients"):
        assert found[name] < 1e-6, (name, found[name])
    assert found["weights"] < 1e-4
    texts = [(folder / "samples.jsonl").read_text(encoding="utf-8") for folder in (one, other)]
    assert texts[0] == texts[1]
