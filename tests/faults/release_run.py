"""The run of the release fixture (tests/faults/data/release): what is trained there, and how the fixture is made.

    python release_run.py FOLDER        with the package of that release on PYTHONPATH

Three jobs, as torchtitan tests its checkpoints: A runs whole, B is the same run stopped half-way, C (the test, with the code of today)
continues B and must end as A did. A release makes the fixture anew with its own code. FOLDER gets `run` (what B left), and how A ended:
`expected.json`, `expected.safetensors`. Model, samples and settings stand here and nowhere else, so that a change of the other tests'
toys does not touch them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from luyen import __version__
from luyen.algorithms.pretrain import Pretrain
from luyen.core.config import load
from luyen.data.loader import PackedStream
from luyen.data.samples import Sample
from luyen.engine.config import TrainConfig
from luyen.engine.trainer import Hooks, fit
from luyen.models.transformer import Transformer, TransformerConfig

STOP, STEPS = 6, 12
SIZE = {
    "vocab_size": 24, "hidden_size": 8, "intermediate_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "context_length": 16,
}  # fmt: skip
TRAIN = {
    "steps": STEPS, "accumulation": 2, "device": "cpu", "precision": "fp32", "evaluate_every": 4,
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "ema_decay": 0.9}, "checkpoint": {"every_steps": STOP},
}  # fmt: skip


def algorithm() -> Pretrain:
    """A decoder of about 800 weights on sequences that count up."""
    torch.manual_seed(11)
    generator = np.random.default_rng(5)
    samples = []
    for index in range(30):
        length, step = int(generator.integers(3, 17)), int(generator.integers(1, 4))
        ids = (int(generator.integers(24)) + step * np.arange(length + 1)) % 24
        samples.append(Sample(f"sample-{index}", ids[:-1].astype(np.int32), ids[1:].astype(np.int32)))
    return Pretrain(Transformer(load(TransformerConfig, SIZE)), PackedStream(samples, capacity=16, rows=2, seed=5))


def run(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
    """Train in `folder`, as if killed after `stop` steps when it is given. Returns the weights, and the log beside them in `folder`."""
    made = algorithm()
    if stop is not None:
        plain = made.batches
        made.batches = lambda state: islice(plain(state), stop * TRAIN["accumulation"])  # type: ignore[method-assign, operator]
    evaluate = {"mean": lambda: sum(float(parameter.double().sum()) for parameter in made.model.parameters()) + float(torch.rand(()))}
    try:
        fit(made, load(TrainConfig, TRAIN), folder, seed=3, hooks=Hooks(evaluate=lambda: {name: what() for name, what in evaluate.items()}))
    except StopIteration:
        assert stop is not None
    return {name: tensor.detach().clone() for name, tensor in made.model.state_dict().items()}


def digest(folder: Path) -> dict[str, str]:
    """sha256 of what the last checkpoint of a run holds and of its log."""
    last = max((folder / "checkpoints").glob("step-*"))
    paths = [last / f"{name}.safetensors" for name in ("model", "optimizer", "random")] + [folder / "metrics.jsonl"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main(folder: Path) -> None:
    """Make the fixture."""
    torch.set_num_threads(1)
    weights = run(folder / "whole")
    run(folder / "run", STOP)
    facts: dict[str, Any] = {"luyen": __version__, "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    rows = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    text = json.dumps({**facts, "sha256": digest(folder / "whole"), "metrics": rows}, indent=1)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    save_file(weights, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
