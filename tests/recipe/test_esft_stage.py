"""A mixture's experts chosen on a stage's data: told, kept, and the same again after an interruption."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.adapters import files  # noqa: E402
from luyen.core import interrupt, progress  # noqa: E402
from luyen.core.config import load  # noqa: E402
from luyen.core.errors import ConfigError, Interrupted  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.tokenizer.load import Tokenizer  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

TALK = [{"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]} for n in range(8)]
SIZE = {"vocab_size": 290, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "context_length": 96}
EXPERTS = {"count": 4, "per_token": 2, "intermediate_size": 16, "shared_size": 16}


def base(folder: Path, **variant: Any) -> Path:
    folder.mkdir()
    train(["What is one? It is one."] * 3, TokenizerConfig(vocab_size=290)).save(folder)
    torch.manual_seed(0)
    hf.save(Transformer(load(TransformerConfig, {**SIZE, "variant": variant})), folder)
    return folder


def sft(folder: Path, model: Path, data: Path, *settings: str) -> Path:
    loop = ("train.steps=4", "train.device=cpu", "batch.rows=1", "train.checkpoint.every_steps=2", "adapter.method=esft")
    return verb("sft", folder, f"model={model}", f"data={data}", *loop, *settings)


def test_the_choice_is_told_kept_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = base(tmp_path / "base", experts=EXPERTS), lines(tmp_path / "talk.jsonl", TALK)
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    whole = sft(tmp_path / "whole", model, data)
    chosen = json.loads((whole / "luyen.json").read_text())["metrics"]["experts"]
    names = {name for name in files.read_tensors(whole / "adapter")}
    owners = {f"{layer}.experts.{number}" for layer, experts in chosen.items() for number in experts}
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in names} == owners
    assert sum("are trained" in line and ": experts " in line for line in said) == len(chosen) == 2
    count, asked = iter(range(1000)), interrupt.requested
    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "requested", lambda: 15 if next(count) == 2 else asked())
        with pytest.raises(Interrupted):
            sft(tmp_path / "cut", model, data)
    cut = sft(tmp_path / "cut", model, data)
    assert (whole / "adapter" / files.WEIGHTS).read_bytes() == (cut / "adapter" / files.WEIGHTS).read_bytes()
    on = sft(tmp_path / "on", model, data, f"start={whole}")
    assert set(files.read_tensors(on / "adapter")) == names


def test_rows_of_new_tokens_are_trained_beside_the_experts(tmp_path: Path) -> None:
    model, data = base(tmp_path / "base", experts=EXPERTS), lines(tmp_path / "talk.jsonl", TALK)
    stage = sft(tmp_path / "run", model, data, "tokens=[What is,<tool>]")
    rows = {name: tensor for name, tensor in files.read_tensors(stage / "adapter").items() if name.endswith(".rows.weight")}
    assert rows and all(tensor.shape == (2, 32) for tensor in rows.values())
    size, plain, opened = Tokenizer.load(model).vocab_size, hf.load(model), files.open_model(stage)
    with torch.no_grad():
        assert opened.config.vocab_size == 290 and torch.equal(opened.head_weight[:size], plain.head_weight[:size])
        assert torch.equal(opened.head_weight[size : size + 2], next(reversed(rows.values())))


def test_a_plain_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no experts"):
        sft(tmp_path / "run", base(tmp_path / "base"), lines(tmp_path / "talk.jsonl", TALK))
