"""What an adapter would train, shown before anything is trained."""

import re
from pathlib import Path
from typing import Any

import pytest
from toy_models import write_model

from luyen.adapters.config import ExpertChoiceConfig
from luyen.adapters.esft import choose_experts
from luyen.cli import inspect as command
from luyen.core import progress
from luyen.core.config import load
from luyen.core.errors import ConfigError, ModelError
from luyen.core.files import write_jsonl
from luyen.core.records import Conversation, Message
from luyen.data.loader import collate
from luyen.data.samples import chat_samples
from luyen.models import hf
from luyen.models.attention import Layout
from luyen.models.config import ExpertsConfig, VariantConfig
from luyen.recipe.configs import SFTConfig
from luyen.recipe.stage import Stage
from luyen.recipe.tuning import tuned_model
from luyen.tokenizer.load import Tokenizer

TALK: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]} for n in range(4)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "base")


def inspect(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    command._inspect(tuple(map(str, words)))
    return capsys.readouterr().out


def test_the_modules_are_shown_with_counts_and_memory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspect(capsys, f"model={model}", "adapter.method=lora", "adapter.rank=4", "adapter.also=[norms]").replace("\xa0", " ")
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["model.layers.*.mlp.down_proj"][-2:] == ["1", "192"]  # 4 x 32 and 16 x 4
    assert lines["model.norm"][-1] == "16"
    trained = 4 * 4 * 32 + 3 * 4 * 48 + 3 * 16
    assert f"lora: {trained:,} of" in told and "gradients 4.54 kB, AdamW 9.09 kB" in told


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_the_share_is_that_which_training_tells(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, method: str) -> None:
    told = inspect(capsys, f"model={model}", f"adapter.method={method}").replace("\xa0", " ")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress, "say", said.append)
        config = load(SFTConfig, {"model": str(model), "data": "x", "adapter": {"method": method}})
        tuned_model(config, config.train, str(model), Tokenizer.load(model), Stage("sft", tmp_path, 0))
    shown = re.compile(r"([\d,]+) of ([\d,]+) weights are trained \(([\d.]+) ?%\)")
    assert shown.findall(told) == shown.findall("\n".join(said)) != []


def test_few_bits_take_less(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, few = (inspect(capsys, f"model={model}", "adapter.method=lora", f"quantize={kind}") for kind in ("none", "nf4"))
    assert "held in nf4, 0.516 bytes a weight" in few and "bytes a weight" not in whole


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("adapter.method=lora", "adapter.targets=[q_prj]"), "Did you mean 'q_proj'"),
        (("adapter.method=lora", "adapter.rank=17"), "expected at most 16"),
        (("quantize=nf4",), "quantize=nf4 freezes the weights, which adapter.method=full trains"),
        (("data.jsonl", "adapter.method=lora"), "DATA or an adapter"),
        (("data=data.jsonl", "adapter.method=lora"), "DATA or an adapter"),
        (("data.jsonl", "adapter.method=esft"), "no experts"),
    ],
)
def test_what_does_not_fit_is_told(
    model: Path, words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("data.jsonl"), TALK)
    with pytest.raises(ConfigError, match=told):
        command._inspect((f"model={model}", *words))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experts = ExpertsConfig(count=4, per_token=2, normalised=False)
    return write_model(tmp_path_factory.mktemp("models") / "mixture", variant=VariantConfig(qk_norm="whole", experts=experts))


def test_the_data_chooses_experts_and_without_it_that_is_said(mixture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "talk.jsonl"
    write_jsonl(data, TALK)
    words = (f"model={mixture}", "adapter.method=esft", "adapter.experts.share=0.5")
    told = inspect(capsys, *words, f"data={data}")
    assert told == inspect(capsys, data, *words)
    shown = re.search(r"model\.layers\.0\.mlp: (.*): (\d) of 4", told.replace("\xa0", " "))
    assert shown is not None
    tokenizer = Tokenizer.load(mixture)
    rows = chat_samples([Conversation(tuple(Message(**turn) for turn in row["messages"])) for row in TALK], tokenizer, 128)[0]
    batch = collate(rows)
    choice = choose_experts(hf.load(mixture), [(batch.tokens_T[None], Layout.packed(batch.lengths))], ExpertChoiceConfig(share=0.5))
    chosen = choice["model.layers.0.mlp"]
    assert [int(number) for number in re.findall(r"(\d) \(", shown[1])] == list(chosen) and int(shown[2]) == len(chosen)
    assert f"esft: {len(chosen) * 3 * 16 * 32:,} of" in told
    command._inspect(words)
    captured = capsys.readouterr()
    assert "the data decides which experts are trained" in captured.out + captured.err and "experts that" not in captured.out


def test_experts_that_would_stay_frozen_are_told(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="all experts of this mixture would stay frozen; found targets q_proj"):
        command._inspect((f"model={mixture}", "adapter.method=lora", "adapter.rank=4", "adapter.targets=[q_proj]"))
    capsys.readouterr()
    command._inspect((f"model={mixture}", "adapter.method=lora", "adapter.rank=4", "adapter.targets=[experts.1.*]"))
    captured = capsys.readouterr()
    assert "3 experts of 4 in all layers would stay frozen" in captured.out + captured.err
    for method in ("bottleneck", "prefix"):
        command._inspect((f"model={mixture}", f"adapter.method={method}"))
        captured = capsys.readouterr()
        assert "frozen" not in captured.out + captured.err
