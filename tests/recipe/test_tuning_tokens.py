"""Stages that tune a model with new tokens: what they write, that old rows keep their bits, and what can be done with the result."""

import json
import re
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.adapters import files  # noqa: E402
from luyen.adapters.count import trained_weights  # noqa: E402
from luyen.cli import inspect, merge  # noqa: E402
from luyen.core import interrupt  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError, Interrupted, UserError  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.configs import PretrainConfig, SFTConfig  # noqa: E402
from luyen.recipe.estimate import Outlook  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402
from luyen.recipe.planning import Assumptions, outline  # noqa: E402
from luyen.tokenizer.load import Tokenizer  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

TALK = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"<tool>{n}</tool> It is {n}."}]}
    for n in range(8)
]
LOOP = ("train.steps=4", "train.device=cpu", "batch.rows=1", "train.checkpoint.every_steps=2")
LORA = ("adapter.method=lora", "adapter.rank=4")
TOKENS = "tokens=[<tool>,</tool>]"
ASSUMED = Assumptions(devices={}, mfu=0.4, prices={}, intensity=None, pue=1.2, most=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("data") / "talk.jsonl", TALK)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    tokenizer = train(["What is one? It is one."] * 3, TokenizerConfig(vocab_size=290))
    tokenizer.save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=96, tied=False
    )  # fmt: skip
    hf.save(Transformer(size), folder)
    return folder


def sft(folder: Path, base: Path, data: Path, *settings: str) -> Path:
    return verb("sft", folder, f"model={base}", f"data={data}", *LOOP, *settings)


@pytest.fixture(scope="module")
def tuned(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft(tmp_path_factory.mktemp("tuned"), base, data, *LORA, TOKENS)


def test_the_adapter_has_the_rows_and_the_tokenizer(tuned: Path, base: Path) -> None:
    folder = tuned / "adapter"
    size = Tokenizer.load(base).vocab_size
    assert Tokenizer.load(folder).encode("<tool>") == [size] and Tokenizer.load(files.locate_tokenizer(tuned)).vocab_size == size + 2
    keys = json.loads((folder / "adapter_config.json").read_text())
    assert keys["trainable_token_indices"] == {"embed_tokens": [size, size + 1], "lm_head": [size, size + 1]}
    rows = files.read_tensors(folder)["base_model.model.lm_head.token_adapter.trainable_tokens_delta"]
    mean = hf.load(base).head_weight[:size].mean(0)
    assert rows.shape == (2, 32) and not torch.allclose(rows, mean.expand(2, -1), atol=1e-5), "they have learned something"
    model = files.open_model(tuned)
    with torch.no_grad():
        assert torch.equal(model.head_weight[:size], hf.load(base).head_weight[:size])
    facts = json.loads((tuned / "luyen.json").read_text())
    plain = trained_weights(hf.load(base, "meta").config, files.read_config(folder))
    assert facts["metrics"]["trained"] == plain + 2 * 2 * 32


def test_new_tokens_are_rows_of_what_is_planned(base: Path, tmp_path: Path) -> None:
    recipe, size = tmp_path / "plan.yaml", hf.read_config(base).vocab_size
    one = f"{{do: sft, model: {base}, data: x.jsonl, tokens: [<a>, <b>]}}"
    more = f"{{do: pretrain, base: {base}, data: x.txt, tokens: [<a>, <b>, <c>]}}"
    recipe.write_text(f"version: 1\nname: r\nstages:\n  one: {one}\n  two: {{do: sft, model: one, data: x.jsonl}}\n  more: {more}\n")
    made = {stage.name: stage for stage in plan(recipe, {}).stages}
    counted = outline(plan(recipe, {}), ASSUMED).trainings
    assert {name: stage.training.model.vocab_size - size for name, stage in counted.items()} == {"one": 2, "two": 2, "more": 3}
    assert Outlook(made, {}).model("more") == counted["more"].training.model


def test_all_of_it_trained_it_is_a_model_of_more_tokens(base: Path, data: Path, tmp_path: Path) -> None:
    stage = sft(tmp_path, base, data, TOKENS, "prompts=[Hello]")
    size = Tokenizer.load(base).vocab_size + 2
    model = hf.load(stage / "model")
    assert model.config.vocab_size == size == model.head_weight.shape[0]
    assert json.loads((stage / "model" / "config.json").read_text())["vocab_size"] == model.config.vocab_size
    assert Tokenizer.load(stage / "model").encode("a<tool>")[-1] == size - 2


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_an_interrupted_stage_ends_in_the_same_bits(
    quantize: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    settings = (*LORA, TOKENS, f"quantize={quantize}", "prompts=[Hello <tool>]")
    whole = sft(tmp_path / "whole", base, data, *settings)
    count, asked = iter(range(1000)), interrupt.requested
    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "requested", lambda: 15 if next(count) == 3 else asked())
        with pytest.raises(Interrupted):
            sft(tmp_path / "cut", base, data, *settings)
    cut = sft(tmp_path / "cut", base, data, *settings)
    names = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
    assert [(whole / "adapter" / name).read_bytes() for name in names] == [(cut / "adapter" / name).read_bytes() for name in names]


def test_it_is_gone_on_with_and_a_further_stage_trains_on_it(tuned: Path, base: Path, data: Path, tmp_path: Path) -> None:
    still = ("train.steps=1", "train.optimizer.learning_rate=1e-12", "train.optimizer.weight_decay=0")
    second = sft(tmp_path / "second", base, data, *LORA, f"start={tuned}", *still)
    before, after = (files.read_tensors(stage / "adapter") for stage in (tuned, second))
    assert set(before) == set(after) and all(torch.allclose(before[name], after[name], atol=1e-8) for name in before)
    assert Tokenizer.load(second / "adapter").encode("<tool>") == Tokenizer.load(tuned / "adapter").encode("<tool>")
    third = sft(tmp_path / "third", tuned, data, *LORA, "tokens=[<more>]")
    size = Tokenizer.load(base).vocab_size
    assert Tokenizer.load(third / "adapter").encode("<tool><more>") == [size, size + 2]
    opened = files.open_model(third)
    assert opened.config.vocab_size == size + 3
    with torch.no_grad():
        assert torch.equal(opened.model.embed_tokens.weight[: size + 2], files.open_model(tuned).model.embed_tokens.weight[: size + 2])


def test_pretraining_goes_on_with_them_and_a_template_gets_its_control_tokens(base: Path, data: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is <tool> one </tool>.\n" * 40)
    stage = verb("pretrain", tmp_path / "text", f"base={base}", f"data={text}", "train.steps=2", "train.device=cpu", *LORA, TOKENS)
    assert "trainable_token_indices" in (stage / "adapter" / "adapter_config.json").read_text()
    stage = sft(tmp_path / "chat", base, data, *LORA, "template=chatml", "tokens=[<tool>,<|im_start|>,<|im_end|>]")
    tokenizer = Tokenizer.load(stage / "adapter")
    assert {"<|im_start|>", "<|im_end|>"} <= tokenizer.control.keys() and "<tool>" not in tokenizer.control
    assert tokenizer.control["<|im_end|>"] in tokenizer.stop_ids


def test_the_commands_know_them(tuned: Path, base: Path, data: Path, tmp_path: Path) -> None:
    def said(command: click.Command, *words: str) -> str:
        found = CliRunner().invoke(command, list(words))
        assert found.exit_code == 0, (found.output, found.exception)
        return found.output

    said(merge.command("merge"), str(base), str(tuned / "adapter"), f"out={tmp_path / 'plain'}")
    merged = hf.load(tmp_path / "plain")
    size = Tokenizer.load(tmp_path / "plain").vocab_size
    assert merged.config.vocab_size == size and Tokenizer.load(tmp_path / "plain").encode("<tool>") == [size - 2]
    ids = torch.tensor([[size - 2, 5, size - 1, 9]])
    with torch.no_grad():
        beside = files.open_model(tuned)
        torch.testing.assert_close(merged.logits(merged(ids)), beside.logits(beside(ids)), rtol=1e-4, atol=1e-5)
    counted = said(inspect.command("inspect"), f"model={base}", *LORA, TOKENS)
    trained = json.loads((tuned / "luyen.json").read_text())["metrics"]["trained"]
    assert "lm_head.rows" in counted and re.search(rf"lora: {trained:,} of", counted)
    assert said(inspect.command("inspect"), str(data), f"model={base}", "template=luyen", TOKENS)


def test_wrong_tokens_are_refused_in_one_line(base: Path, data: Path, tmp_path: Path) -> None:
    for settings, message in (
        (["tokens=[<a>,<a>]"], "tokens has '<a>' twice"),
        (["tokens=[<a>, '']"], "tokens has an empty one"),
        ([TOKENS, "start=adapter", *LORA], "tokens are new ones, and start=adapter brings its own"),
        ([TOKENS, *LORA, "train.parallel.shard=2"], "train.parallel.shard slices tables"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(SFTConfig, parse_overrides(["model=x", "data=y", *settings]))
    with pytest.raises(ConfigError, match="tokens are added to those of a base"):
        load(PretrainConfig, parse_overrides(["data=y", "tokenizer=z", TOKENS]))
    with pytest.raises(UserError, match=r"tokens: '<\|end\|>' is a token of this tokenizer already") as told:
        sft(tmp_path, base, data, "tokens=[<|end|>]")
    assert "\n" not in str(told.value)
