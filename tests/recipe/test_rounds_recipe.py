"""Llama 2's rounds as their recipe has them, with a toy corpus and a few steps in each stage."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_pages  # noqa: E402

from luyen.core.config import merge, read_yaml  # noqa: E402
from luyen.recipe.graph import find_recipe, plan  # noqa: E402
from luyen.recipe.run import run  # noqa: E402

LOOP: dict[str, Any] = {"train": {"steps": 2, "device": "cpu"}, "batch": {"rows": 2, "length": 128}}
DRAW: dict[str, Any] = {"temperatures": [0.7, 1.0], "search": 2, "max_new_tokens": 8}
REJECT: dict[str, Any] = {**LOOP, "samples": 2, "draw": DRAW, "score": {"examples": 2}}
PAIRS: dict[str, Any] = {"preferences": {"pairs": 40}}
SMALL: dict[str, dict[str, Any]] = {
    "corpus": {"quality": "none", "heldout_fraction": 0.2},
    "tokenizer": {"vocab_size": 400},
    "base": {**LOOP, "model": {"preset": "llama-1m", "num_layers": 1, "context_length": 128}},
    "questions": {"max_entries": 20, "invented": 3},
    "chat": LOOP,
    "helpful_1": PAIRS, "safe_1": PAIRS, "helpful_2": PAIRS, "safe_2": PAIRS,
    **{name: {"train": LOOP["train"], "batch": {"pairs": 2}} for name in ("helpfulness_1", "safety_1", "helpfulness_2", "safety_2")},
    "v1": REJECT, "v2": REJECT,
    "ppo": {"train": {**LOOP["train"], "evaluate_every": 2}, "score": {"examples": 2},
            "rollout": {"prompts": 4, "minibatch": 2, "max_new_tokens": 8}},
    "versions": {"examples": 2, "sampling": {"max_new_tokens": 4}},
}  # fmt: skip


@pytest.mark.slow
def test_two_steps_of_every_stage(tmp_path: Path) -> None:
    values = read_yaml(find_recipe("llama2-chat"))
    stages = {name: merge(stage, SMALL.get(name, {})) for name, stage in values["stages"].items() if name != "pages"}
    stages["corpus"]["source"] = str(write_pages(tmp_path / "pages"))
    path = tmp_path / "rounds.yaml"
    path.write_text(yaml.safe_dump({**values, "stages": stages}, sort_keys=False))
    made = plan(path, {})
    order = [stage.name for stage in made.stages]
    assert order.index("safety_1") < order.index("v1") < order.index("safe_2") < order.index("v2") < order.index("ppo")
    run(made, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "v2" / "luyen.json").read_text())
    assert facts["metrics"]["rewards"]["earlier"] > 0, "the first round's best stay"
    assert (tmp_path / "run" / "ppo" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "versions" / "results.json").is_file()
