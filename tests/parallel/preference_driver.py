"""DPO with an adapter on a toy in as many processes as were started. Run by the tests as a program of its own, also under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from luyen.adapters.adapt import adapt  # noqa: E402 (the file is also a program)
from luyen.adapters.config import AdapterConfig  # noqa: E402
from luyen.algorithms.dpo import DPO  # noqa: E402
from luyen.algorithms.reference import AdapterOff, Known, precompute  # noqa: E402
from luyen.core import distributed  # noqa: E402
from luyen.core.config import load  # noqa: E402
from luyen.data.pairs import GroupStream  # noqa: E402
from luyen.engine.trainer import fit  # noqa: E402
from tests.algorithms.preference_toys import pairs  # noqa: E402
from tests.training_toys import toy_config, toy_model  # noqa: E402


def main(folder: Path, steps: int, axis: str, before: bool) -> None:
    """Train in a folder; the reference is the model with its adapter off, or what it said of every answer before training."""
    model = toy_model()
    adapt(model, load(AdapterConfig, {"method": "lora", "rank": 2}))
    if not distributed.is_main():
        model.to("meta")
    stream = GroupStream(pairs(8), size=4, seed=0)
    reference = AdapterOff(model)
    if before:
        precompute(reference, stream, folder / "reference", "toy")
    algorithm = DPO(model, stream, Known() if before else reference)
    parallel = {axis: distributed.ranks()} if axis else {}
    fit(algorithm, toy_config(steps=steps, optimizer={"learning_rate": 1e-2}, parallel=parallel, evaluate_every=0), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:] == ["before"])
