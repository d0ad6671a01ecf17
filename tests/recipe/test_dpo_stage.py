"""The verb `dpo`: what it writes, its references, resumption, several data stages, and what it refuses or says."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.adapters import files  # noqa: E402
from luyen.core import interrupt, progress  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError, DataError, Interrupted  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.estimate import Outlook  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402
from luyen.recipe.preference_configs import PreferenceConfig  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

LN2 = 0.6931471824645996
PAIRS: list[dict[str, object]] = [
    {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"I do not want to say what {n} is."} for n in range(12)
]
JUDGED: list[dict[str, object]] = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(12)]
LOOP = ("train.steps=4", "train.device=cpu", "batch.pairs=4", "train.checkpoint.every_steps=2", "train.optimizer.learning_rate=1e-2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines(folder / "pairs.jsonl", PAIRS)
    lines(folder / "judged.jsonl", JUDGED)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    train(["What is one? It is one. I do not want to say what it is."] * 3, TokenizerConfig(vocab_size=290)).save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=290, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=128)
    hf.save(Transformer(size), folder)
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(progress, "say", found.append)
    return found


def dpo(folder: Path, base: Path, data: Path, *settings: str) -> Path:
    chosen = () if any(setting.startswith("data=") for setting in settings) else (f"data={data / 'pairs.jsonl'}",)
    return verb("dpo", folder, f"model={base}", *chosen, *LOOP, *settings)


def log(stage: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_a_whole_model_learns_from_a_frozen_copy_of_itself(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    stage = dpo(tmp_path / "run", base, data, f"heldout_pairs={data / 'pairs.jsonl'}", "prompts=[Hello]", "train.steps=12")
    rows = log(stage)
    assert rows[0]["loss"] == LN2 and rows[-1]["loss"] < 0.6 and rows[-1]["accuracy"] == 1
    assert files.open_model(stage / "model").config.vocab_size == 290
    found = json.loads((stage / "luyen.json").read_text())
    assert found["metrics"]["data"]["source0: " + str(data / "pairs.jsonl")]["tokens"]["samples"] == 12
    assert found["metrics"]["evaluation"]["heldout_accuracy"] == 1 and "100.0% of held-out pairs" in found["metrics"]["summary"]
    assert any("a frozen copy" in line for line in said) and any("12 pairs used" in line for line in said)
    assert json.loads((stage / "model" / "luyen.json").read_text())["lineage"]["algorithm"] == "dpo"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["adapter.method=lora", "adapter.rank=4"], "adapter off"),
        (["adapter.method=lora", "adapter.rank=4", "adapter.also=[norms]"], "asked once"),
        (["adapter.method=selective", "adapter.also=[norms]"], "asked once"),
        (["precompute=true"], "asked once"),
        (["adapter.method=lora", "adapter.rank=4", "tokens=['<new>']"], "asked once"),
    ],
)
def test_every_reference_begins_at_ln_2(settings: list[str], told: str, base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    stage = dpo(tmp_path / "run", base, data, *settings)
    assert log(stage)[0]["loss"] == pytest.approx(LN2, abs=2e-6) and any(told in line for line in said)
    assert log(stage)[-1]["loss"] < 0.692


def test_an_adapter_that_is_gone_on_with_is_its_own_reference(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    lora = ("adapter.method=lora", "adapter.rank=4")
    first = dpo(tmp_path / "first", base, data, *lora)
    rows = log(dpo(tmp_path / "second", base, data, *lora, f"start={first}"))
    assert rows[0]["loss"] == pytest.approx(LN2, abs=2e-6) and rows[-1]["loss"] < 0.69
    assert any("the model as it is now, asked once" in line for line in said)


def test_learned_positions_and_chosen_experts(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    """A prefix stands before whole sequences, and without it the model is the reference; experts are chosen by the chosen answers."""
    rows = log(dpo(tmp_path / "prefix", base, data, "adapter.method=prefix", "adapter.prompt.tokens=3"))
    assert rows[0]["kl"] != 0 and any("adapter off" in line for line in said)
    experts = {"count": 4, "per_token": 2, "intermediate_size": 16, "shared_size": 16}
    size = {"vocab_size": 290, "hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "context_length": 128}
    mixture = tmp_path / "mixture"
    shutil.copytree(base, mixture)
    hf.save(Transformer(load(TransformerConfig, {**size, "variant": {"experts": experts}})), mixture)
    rows = log(dpo(tmp_path / "esft", mixture, data, "adapter.method=esft"))
    assert rows[0]["loss"] == pytest.approx(LN2, abs=2e-6) and any("are trained" in line for line in said)


def test_the_size_of_a_stage_after_is_known(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "rounds.yaml"
    one = f"{{do: dpo, model: {base}, data: {data / 'pairs.jsonl'}}}"
    recipe.write_text(f"version: 1\nname: r\nstages:\n  one: {one}\n  two: {{do: sft, model: one, data: x.jsonl}}\n")
    stages = {stage.name: stage for stage in plan(recipe, {}).stages}
    found = Outlook(stages, {}).model("one")
    assert found is not None and found.vocab_size == 290


def test_another_model_as_the_reference_and_its_figures_computed_before(base: Path, data: Path, tmp_path: Path) -> None:
    other = dpo(tmp_path / "other", base, data)
    online = log(dpo(tmp_path / "online", base, data, f"reference={other}"))
    before = log(dpo(tmp_path / "before", base, data, f"reference={other}", "precompute=true"))
    assert online[0]["loss"] != pytest.approx(LN2, abs=1e-3)
    assert [row["loss"] for row in online] == pytest.approx([row["loss"] for row in before], abs=1e-5)


@pytest.mark.parametrize("name", ["ipo", "cdpo", "robust", "hinge", "orpo", "simpo", "kto", "apo_zero_unpaired"])
def test_every_loss_runs_two_steps(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    judged = name in ("kto", "apo_zero_unpaired")
    source = [f"data={data / 'judged.jsonl'}"] if judged else []
    stage = dpo(tmp_path / "run", base, data, f"loss.name={name}", "train.steps=2", f"heldout_pairs={data / 'pairs.jsonl'}", *source)
    assert len(log(stage)) == 2 and (stage / "model").is_dir()


def test_kto_takes_preferences_apart(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    stage = dpo(tmp_path / "run", base, data, "loss.name=kto", "train.steps=2")
    assert log(stage)[0]["loss"] == 0.5 and any("12 good answers, 12 bad" in line for line in said)


@pytest.mark.parametrize("settings", [["adapter.method=lora", "adapter.rank=4"], ["precompute=true"]])
def test_what_is_stopped_goes_on_to_the_same_bits(
    settings: list[str], base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dpo(tmp_path / "whole", base, data, *settings)
    count, asked = iter(range(1000)), interrupt.requested
    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "requested", lambda: 15 if next(count) == 2 else asked())
        with pytest.raises(Interrupted):
            dpo(tmp_path / "cut", base, data, *settings)
    cut = dpo(tmp_path / "cut", base, data, *settings)
    name = "adapter/adapter_model.safetensors" if len(settings) > 1 else "model/model.safetensors"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_rows_at_fault_are_named_and_several_sources_mixed(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    wrong = [*PAIRS[:3], {"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b " * 200, "rejected": "c"}]
    lines(tmp_path / "more.jsonl", wrong)
    stage = dpo(
        tmp_path / "run", base, data, f"data=[{data / 'pairs.jsonl'},{tmp_path / 'more.jsonl'}]", "weights=[1,3]", "batch.length=100"
    )
    assert any("more.jsonl:4" in line and "equal" in line for line in said)
    assert any("3 pairs used" in line and "1 longer than 100 tokens" in line for line in said)
    assert log(stage)[-1]["loss"] < LN2
    with pytest.raises(DataError, match=r"no pair is left.*batch\.length"):
        dpo(tmp_path / "none", base, data, "batch.length=6")


def test_what_a_stage_made_is_found_in_its_folder(base: Path, tmp_path: Path, said: list[str]) -> None:
    made = tmp_path / "made"
    made.mkdir()
    lines(made / "preferences.jsonl", PAIRS[:8])
    (made / "account.json").write_text('{"rows": 8}')
    dpo(tmp_path / "run", base, tmp_path, f"data={made}", "train.steps=1")
    assert any("8 pairs used, 0 cut, 0 left out" in line for line in said)


def test_rounds_of_a_recipe_follow_each_other(tmp_path: Path) -> None:
    """Each round's model is the next one's, and the data of all rounds go into it."""
    recipe = tmp_path / "rounds.yaml"
    recipe.write_text(
        "version: 1\nname: rounds\nstages:\n"
        "  first: {do: dpo, model: chat/model, data: one.jsonl}\n"
        "  second: {do: dpo, model: first, data: [one.jsonl, two.jsonl], reference: first}\n"
    )
    first, second = plan(recipe, {}).stages
    assert (first.name, second.name) == ("first", "second") and second.inputs == ("first",)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["loss.label_smoothing=0.1"], "label_smoothing is not read by loss.name=sigmoid"),
        (["loss.name=simpo", "reference=x"], "has no reference"),
        (["loss.name=kto", "loss.sft_weight=1"], "sft_weight is not read"),
        (["train.parallel.tensor=2"], "share a prompt"),
        (["weights=[1,2]"], "one for each of the 1 data sets"),
        (["loss_type=ipo"], "loss_type is loss.name here"),
        (["beta=0.2"], "loss.beta"),
        (["per_device_train_batch_size=2"], "batch.pairs here"),
        (["num_train_epochs=1"], "counted in updates of batch.pairs"),
        (["max_prompt_length=9"], "keep_end"),
        (["precompute_ref_log_probs=true"], "precompute here"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_key(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(PreferenceConfig, parse_overrides(["model=a", "data=b", *settings]))
