"""Reward models as stages: what is learned from, what is written and measured, what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.core import manifest, progress  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError, DataError, Interrupted, ModelError  # noqa: E402
from luyen.core.records import Message  # noqa: E402
from luyen.engine.run import Run  # noqa: E402
from luyen.inference.reward_model import open_reward_model, score_texts  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.reward_configs import RewardVerbConfig  # noqa: E402
from luyen.tokenizer.chat import render  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

GRADES = ("significantly_better", "slightly_better")
LOOP = ("train.device=cpu", "batch.pairs=4", "train.optimizer.learning_rate=0.01", "train.checkpoint.every_steps=2")


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "I will not say.", "grade": GRADES[n % 2],
         "safety": ("chosen_safe", "both_safe")[n % 2]}
        for n in range(start, start + count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines(folder / "other.jsonl", rows(30, 200))
    lines(folder / "heldout.jsonl", rows(12, 500))
    return lines(folder / "pairs.jsonl", rows(40))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    train(["What is one? It is one. I will not say."] * 3, TokenizerConfig(vocab_size=290)).save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=290, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=256)
    hf.save(Transformer(size), folder)
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(progress, "say", lambda text, *_: found.append(text))
    return found


def reward(folder: Path, base: Path, data: Path, *settings: str) -> Path:
    return verb("reward", folder, f"model={base}", f"data={data}", *LOOP, *settings)


def facts(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage / "luyen.json").read_text())
    return found


def test_one_epoch_is_learned_and_the_folder_is_a_classifier(tmp_path: Path, base: Path, data: Path, said: list[str]) -> None:
    stage = reward(tmp_path, base, data, f"heldout={data.parent / 'heldout.jsonl'}", "loss.margins=small", "loss.centring=0.01")
    metrics = facts(stage)["metrics"]
    assert metrics["steps"] == 10 and metrics["pairs"] == 40 and metrics["heldout"]["pairs"] == 12
    assert manifest.verify(stage / "reward")["kind"] == "reward" and facts(stage)["kind"] == "reward"
    assert metrics["heldout"]["accuracy"] > 0.9 and set(metrics["heldout"]["by_grade"]) == set(GRADES)
    assert metrics["heldout"]["longer_answer"]["accuracy"] == 0  # "I will not say." is longer than every right answer
    assert any("12 held-out pairs" in line for line in said) and any("10 epochs" not in line and "10 steps" in line for line in said)
    model, tokenizer = open_reward_model(stage, "cpu")
    talk = [Message("user", "What is 7?"), Message("assistant", "It is 7.")]
    ids = torch.tensor([render(tokenizer, talk).ids])
    twin = AutoModelForSequenceClassification.from_pretrained(stage / "reward").eval()
    assert score_texts(model, tokenizer, [talk]) == [pytest.approx(float(twin(ids).logits.detach()), abs=1e-5)]
    assert json.loads((stage / "heldout.jsonl").read_text().splitlines()[0]).keys() == {"source", "grade", "chosen", "rejected"}
    with pytest.raises(ModelError, match="is a reward model"):
        hf.load(stage / "reward")


def test_two_steps_with_an_adapter_and_a_safety_head_beside_another(tmp_path: Path, base: Path, data: Path, said: list[str]) -> None:
    held = f"heldout={data.parent / 'heldout.jsonl'}"
    first = reward(tmp_path / "first", base, data, held, "train.steps=2")
    stage = reward(
        tmp_path / "second", base, data, held, "train.steps=2", "adapter.method=lora", "adapter.rank=4", "loss.safety=0.5",
        "loss.safety_head=true", f"beside={first}", f"judge={base}", "endpoint.pairs=3",
    )  # fmt: skip
    found = facts(stage)["metrics"]["heldout"]
    assert 0 <= found["beside"]["agree"] <= 1 and found["judges"][str(base)]["count"] == 3
    assert found["safety"]["unsafe"] == 6 and found["safety"]["safe"] == 18 and any("safety: of unsafe" in line for line in said)
    assert any("weights are trained" in line for line in said) and any("the judge" in line for line in said)
    values = json.loads((stage / "reward" / "config.json").read_text())
    assert values["id2label"] == {"0": "reward", "1": "safety"}
    assert open_reward_model(stage)[0].score.out_features == 2


def test_a_stopped_stage_ends_in_the_same_bits(
    tmp_path: Path, base: Path, data: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"heldout={data.parent / 'heldout.jsonl'}", "train.steps=6", "adapter.method=lora", "adapter.rank=4")
    whole = reward(tmp_path / "whole", base, data, *settings)
    real = Run.requested_stop
    monkeypatch.setattr(Run, "requested_stop", lambda run: 15 if run.done.step == 3 else real(run))
    with pytest.raises(Interrupted):
        reward(tmp_path / "cut", base, data, *settings)
    monkeypatch.setattr(Run, "requested_stop", real)
    cut = reward(tmp_path / "cut", base, data, *settings)
    assert any("continuing after step 3" in line for line in said)
    for name in ("reward/model.safetensors", "metrics.jsonl", "heldout.jsonl", "evaluation.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_the_paper_s_mixes_and_a_tenth_held_out(tmp_path: Path, base: Path, data: Path, said: list[str]) -> None:
    many = lines(tmp_path / "many.jsonl", rows(100))
    other = f"other=[{data.parent / 'other.jsonl'}]"
    stage = reward(tmp_path / "a", base, many, other, "mix=safety", "train.steps=1")
    kept = 100 - facts(stage)["metrics"]["held_out_pairs"]
    assert 85 < kept < 100 and facts(stage)["metrics"]["pairs"] == kept + round(kept / 9)
    stage = reward(tmp_path / "b", base, many, other, "mix=helpfulness", "train.steps=1")
    assert kept + 20 < facts(stage)["metrics"]["pairs"] <= kept + 30 and any(f"the mix asks for {kept}" in line for line in said)


def test_a_stage_that_made_preferences_is_read(tmp_path: Path, base: Path, data: Path, said: list[str]) -> None:
    (tmp_path / "made").mkdir()
    lines(tmp_path / "made" / "preferences.jsonl", rows(6))
    lines(tmp_path / "made" / "rejected.jsonl", [{"no": "pair"}])
    stage = reward(tmp_path / "run", base, tmp_path / "made", f"heldout={data.parent / 'heldout.jsonl'}", "train.steps=1")
    assert facts(stage)["metrics"]["pairs"] == 6


def test_scaling_trains_on_shares_and_fits_a_law(tmp_path: Path, base: Path, data: Path, said: list[str]) -> None:
    stage = reward(tmp_path, base, data, f"heldout={data.parent / 'heldout.jsonl'}", "scaling=[0.25,0.5,1]", "epochs=0.5")
    found = json.loads((stage / "scaling.json").read_text())[str(base)]
    assert [point["pairs"] for point in found["points"]] == [10, 20, 40] and set(found["law"]) == {"a", "b", "determined"}
    assert (stage / "scaling.svg").read_text().count("<svg") == 1 and any("law" in line for line in said)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["mix=safety"], "mix=safety and other="),
        (["other=[a]"], "nothing reads them"),
        (["weights=[1,2]"], "weights has 2 numbers"),
        (["adapter.method=prefix"], "cannot be merged"),
        (["train.parallel.tensor=2"], "take data or shard"),
        (["loss.safety_head=true"], "nothing to learn"),
        (["sizes=[a]"], "sizes are trained by scaling"),
        (["endpoint.url=http://localhost"], "both url and name"),
        (["loss.margin=small"], "margins"),
    ],
)
def test_what_cannot_be_is_told_at_once(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(RewardVerbConfig, parse_overrides(["model=m", "data=d", *settings]))


def test_what_the_data_does_not_say_is_told(tmp_path: Path, base: Path, data: Path, said: list[str]) -> None:
    plain = lines(tmp_path / "plain.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    with pytest.raises(DataError, match="no pair can be held out"):
        reward(tmp_path / "a", base, plain)
    with pytest.raises(DataError, match="no pair has a grade"):
        reward(tmp_path / "b", base, plain, f"heldout={plain}", "loss.margins=large")
    with pytest.raises(DataError, match="no pair is left"):
        reward(tmp_path / "c", base, data, "batch.length=4")
    with pytest.raises(ConfigError, match="batch.length"):
        reward(tmp_path / "d", base, data, "batch.length=4000")
