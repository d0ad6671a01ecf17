"""The recipes for well-known models, each run for two steps with a toy model and a toy data file in the place of the real ones."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines  # noqa: E402

from luyen.core.config import load  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.presets import PRESETS, PUBLISHED, count_parameters, preset  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.estimate import Outlook  # noqa: E402
from luyen.recipe.graph import find_recipe, plan  # noqa: E402
from luyen.recipe.run import run  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

SQUAD: list[dict[str, object]] = [
    {"question": "Where?", "context": f"It is in Hue {n}.", "answers": {"text": ["Hue"], "answer_start": [9]}} for n in range(8)
]
ROWS: dict[str, list[dict[str, object]]] = {
    "llama2-guanaco": [{"text": f"### Human: What is {n}?### Assistant: It is {n}."} for n in range(8)],
    "summaries-mistral": [{"dialogue": f"Ann: Is it {n}?\nBob: It is.", "summary": f"Bob says {n}."} for n in range(8)],
    "qa-qwen": SQUAD,
    "olmoe-esft": SQUAD,
}
VARIANTS = {"olmoe-esft": {"qk_norm": "whole", "experts": {"count": 4, "per_token": 2, "normalised": False}}}


@pytest.mark.parametrize("name", [pytest.param("llama2-guanaco", marks=pytest.mark.slow), "summaries-mistral", "qa-qwen", "olmoe-esft"])
def test_two_steps_of_a_toy_in_the_place_of_the_real_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = tmp_path / "model"
    model.mkdir()
    train(["What is one? It is one."] * 3, TokenizerConfig(vocab_size=290)).save(model)
    torch.manual_seed(0)
    width = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 1, "num_heads": 2, "context_length": 128}
    hf.save(Transformer(load(TransformerConfig, {"vocab_size": 290, **width, "variant": VARIANTS.get(name, {})})), model)
    data = tmp_path / "data"
    data.mkdir()
    lines(data / "train.jsonl", ROWS[name])
    loop = {"steps": 2, "device": "cpu", "precision": "fp32"}
    toy = {"model": str(model), "data": str(data), "template": "luyen", "batch": {"rows": 1, "length": 128}, "train": loop}
    stages = [stage.name for stage in plan(find_recipe(name), {}).stages]
    run(plan(find_recipe(name), dict.fromkeys(stages, toy)), tmp_path / "run")
    for stage in stages:
        results = {path.parent.name for path in (tmp_path / "run" / stage).glob("*/*.safetensors")}
        assert results & {"adapter", "model"} == {"model" if stage == "full" else "adapter"}


@pytest.mark.parametrize("name", ["llama2-guanaco", "summaries-mistral", "qa-qwen", pytest.param("olmoe-esft", marks=pytest.mark.slow)])
def test_what_it_takes_is_known_without_the_model(name: str) -> None:
    made = plan(find_recipe(name), {})
    outlook = Outlook({stage.name: stage for stage in made.stages}, {})
    assert all(outlook.of(stage).bytes for stage in made.stages)


def test_published_models_have_a_preset_and_the_weights_that_their_names_say() -> None:
    assert {name for name, _ in PUBLISHED.values()} <= set(PRESETS)
    billions = {name: count_parameters(preset(*PUBLISHED[name])) / 1e9 for name in PUBLISHED}
    assert billions["meta-llama/Llama-2-7b-hf"] == pytest.approx(6.738, abs=1e-3)
    assert billions["mistralai/Mistral-7B-v0.1"] == pytest.approx(7.242, abs=1e-3)
    assert billions["Qwen/Qwen2.5-0.5B"] == pytest.approx(0.494, abs=1e-3)
    assert billions["allenai/OLMoE-1B-7B-0924"] == pytest.approx(6.919, abs=1e-3)
