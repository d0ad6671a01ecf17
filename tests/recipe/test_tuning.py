"""Stages that tune a model by an adapter: what they write, go on from, refuse, and that an interrupted one ends in the same bits."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.adapters import files  # noqa: E402
from luyen.adapters.linear import adapted  # noqa: E402
from luyen.adapters.quantized import quantized_maps  # noqa: E402
from luyen.core import interrupt, progress  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError, Interrupted, ModelError  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe import training  # noqa: E402
from luyen.recipe.configs import PretrainConfig, SFTConfig  # noqa: E402
from luyen.recipe.tuning import tokenizer_of  # noqa: E402
from luyen.tokenizer.load import Tokenizer  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

TALK = [{"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]} for n in range(8)]
LOOP = ("train.steps=4", "train.device=cpu", "batch.rows=1", "train.checkpoint.every_steps=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("data") / "talk.jsonl", TALK)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    train(["What is one? It is one."] * 3, TokenizerConfig(vocab_size=290)).save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=290, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=96)
    hf.save(Transformer(size), folder)
    return folder


def sft(folder: Path, base: Path, data: Path, *settings: str) -> Path:
    return verb("sft", folder, f"model={base}", f"data={data}", *LOOP, *settings)


def facts(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage / "luyen.json").read_text())
    return found


METHODS = {
    "lora": ["adapter.rank=4"],
    "dora": ["adapter.rank=4"],
    "adalora": ["adapter.rank=4"],
    "compacter": ["adapter.bottleneck.size=8"],
    "bottleneck": ["adapter.bottleneck.size=8"],
    "prefix": ["adapter.prompt.tokens=4"],
    "prompt": ["adapter.prompt.tokens=4", "adapter.prompt.text=What is it?"],
    "p-tuning": ["adapter.prompt.tokens=4"],
    "ia3": [],
    "bitfit": [],
    "selective": ["adapter.also=[norms]"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_its_result_opens_as_a_model(method: str, base: Path, data: Path, tmp_path: Path) -> None:
    stage = sft(tmp_path / "run", base, data, f"adapter.method={method}", *METHODS[method], "prompts=[Hello]")
    assert not (stage / "model").exists()
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "luyen.json"} <= {
        path.name for path in (stage / "adapter").iterdir()
    }
    model = files.open_model(stage / "adapter")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert not torch.equal(model.logits(model(tokens)), (plain := hf.load(base)).logits(plain(tokens))), "it has learned something"
    metrics = facts(stage)["metrics"]
    assert 0 < metrics["trained"] < metrics["parameters"]
    assert Tokenizer.load(files.locate_tokenizer(stage)).has_template


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_lies_in_half_where_products_are(method: str, base: Path, data: Path, tmp_path: Path) -> None:
    seen: list[dict[str, torch.dtype]] = []
    fit = training.fit

    def watched(algorithm: Any, *given: Any, **named: Any) -> Any:
        seen.append({name: parameter.dtype for name, parameter in algorithm.model.named_parameters() if parameter.requires_grad})
        seen.append({name: parameter.dtype for name, parameter in algorithm.model.named_parameters() if not parameter.requires_grad})
        return fit(algorithm, *given, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "fit", watched)
        stage = sft(tmp_path / "run", base, data, f"adapter.method={method}", *METHODS[method], "train.precision=bf16", "prompts=[Hello]")
    trained, frozen = seen
    assert set(trained.values()) == {torch.float32}
    assert set(frozen.values()) == {torch.float32 if method == "selective" else torch.bfloat16}
    assert files.open_model(stage).head_weight.dtype == torch.float32


def test_an_interrupted_stage_ends_in_the_same_bits(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("adapter.method=adalora", "adapter.rank=2", "adapter.dropout=0.2", "quantize=nf4", "train.steps=12",
                "adapter.allocation.every_steps=2", "train.accumulation=2")  # fmt: skip
    pytest.importorskip("bitsandbytes")
    whole = sft(tmp_path / "whole", base, data, *settings)
    count = iter(range(1000))
    asked = interrupt.requested
    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "requested", lambda: 15 if next(count) == 6 else asked())
        with pytest.raises(Interrupted):
            sft(tmp_path / "cut", base, data, *settings)
    cut = sft(tmp_path / "cut", base, data, *settings)
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert [(whole / "adapter" / name).read_bytes() for name in names] == [(cut / "adapter" / name).read_bytes() for name in names]


def test_an_adapter_is_gone_on_with(base: Path, data: Path, tmp_path: Path) -> None:
    first = sft(tmp_path / "first", base, data, "adapter.method=lora", "adapter.rank=4")
    second = sft(tmp_path / "second", base, data, "adapter.method=lora", "adapter.rank=4", f"start={first}", "train.steps=1",
                 "train.optimizer.learning_rate=1e-12", "train.optimizer.weight_decay=0")  # fmt: skip
    before, after = (files.read_tensors(stage / "adapter") for stage in (first, second))
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in before)
    with pytest.raises(ConfigError, match=r"adapter.rank is not that of start=.*found 8; expected 4"):
        sft(tmp_path / "third", base, data, "adapter.method=lora", "adapter.rank=8", f"start={first}")


def test_the_template_of_the_adapter_that_is_gone_on_with_is_used(base: Path, data: Path, tmp_path: Path) -> None:
    first = sft(tmp_path / "first", base, data, "adapter.method=lora", "adapter.rank=4") / "adapter"
    moved = tmp_path / "moved"
    shutil.copytree(first, moved)
    (moved / "luyen.json").unlink()  # the seal
    (moved / "chat_template.jinja").write_text("mine {{ messages[0]['content'] }}")
    config = SimpleNamespace(start=str(moved), tokens=())
    found = tokenizer_of(config, str(base), SimpleNamespace(model=str))  # type: ignore[arg-type]
    assert found.template.jinja.startswith("mine ")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said while a stage works."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def test_an_adapter_in_the_place_of_a_model_is_merged_first(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    first = sft(tmp_path / "first", base, data, "adapter.method=lora")
    second = sft(tmp_path / "second", first, data, "train.optimizer.learning_rate=1e-12", "train.optimizer.weight_decay=0")
    merged, with_adapter = hf.load(second / "model"), files.open_model(first)
    assert not list(adapted(merged))
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(merged.logits(merged(tokens)), with_adapter.logits(with_adapter(tokens)), rtol=1e-4, atol=1e-5)
    assert any("is merged into its base before training goes on" in line for line in said)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it
def test_an_adapter_on_an_adapter_names_a_plain_model(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    first = sft(tmp_path / "first", base, data, "adapter.method=lora")
    second = sft(tmp_path / "second", first, data, "adapter.method=lora", "adapter.rank=4")
    named = Path(json.loads((second / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert named == second / "base" and not files.is_adapter(named) and any(f"is kept in {named}" in line for line in said)
    tokens = torch.arange(20)[None]
    merged, with_adapter = hf.load(named), files.open_model(first)
    torch.testing.assert_close(merged.logits(merged(tokens)), with_adapter.logits(with_adapter(tokens)), rtol=1e-4, atol=1e-5)
    ours = files.open_model(second)
    assert len(dict(adapted(ours))) > 0 and Tokenizer.load(named).has_template
    third = sft(tmp_path / "third", first, data, "adapter.method=lora", "adapter.rank=4", f"start={second}", "train.steps=1")
    assert facts(third / "adapter")["base"]["weights"] == facts(second / "adapter")["base"]["weights"], "merged again in the same bits"
    peft = pytest.importorskip("peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(second / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours.logits(ours(tokens)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_merged_adapter_has_the_codes_that_it_is_opened_with(kind: str, base: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    first = sft(tmp_path / "first", base, data, "adapter.method=lora", "train.optimizer.learning_rate=0.05")
    seen: list[dict[str, torch.Tensor]] = []
    fit = training.fit

    def watched(algorithm: Any, *given: Any, **named: Any) -> Any:
        seen.append({name: module.codes.clone() for name, module in quantized_maps(algorithm.model)})
        return fit(algorithm, *given, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "fit", watched)
        second = sft(tmp_path / "second", first, data, "adapter.method=lora", f"quantize={kind}", "train.precision=bf16")
    opened = dict(quantized_maps(files.open_model(second)))
    assert seen[0].keys() == opened.keys() and opened
    assert all(torch.equal(codes, opened[name].codes) for name, codes in seen[0].items())


def test_pretraining_goes_on_from_a_base(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is one? It is one. " * 40)
    stage = verb("pretrain", tmp_path / "run", f"base={base}", f"data={text}", "read.text_unit=file", *LOOP, "adapter.method=ia3")
    assert files.is_adapter(stage / "adapter") and facts(stage)["metrics"]["trained"] < 1000
    whole = verb("pretrain", tmp_path / "full", f"base={base}", f"data={text}", *LOOP)
    assert hf.read_config(whole / "model") == hf.read_config(base)


def test_lora_plus_lets_b_learn_faster(base: Path, data: Path, tmp_path: Path) -> None:
    def norm_of_b(name: str, *more: str) -> float:
        stage = sft(tmp_path / name, base, data, "adapter.method=lora", "train.steps=1", "train.optimizer.learning_rate=1e-5", *more)
        found = files.read_tensors(stage / "adapter")
        return float(sum(tensor.abs().max() for key, tensor in found.items() if "lora_B" in key))

    assert norm_of_b("plus", "adapter.lora.rate_ratio=16") == pytest.approx(16 * norm_of_b("plain"), rel=1e-3)


def test_the_error_of_few_bits_is_told(base: Path, data: Path, tmp_path: Path, said: list[str]) -> None:
    pytest.importorskip("bitsandbytes")
    stage = sft(tmp_path / "run", base, data, "adapter.method=lora", "quantize=nf4")
    told = "\n".join(said)
    assert "weights are off by" in told and "of the likeliest next tokens stay" in told
    assert files.quantization(stage / "adapter") == {"kind": "nf4", "double": True}


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (SFTConfig, ["quantize=nf4"], "quantize=nf4 freezes the weights, which adapter.method=full trains"),
        (SFTConfig, ["start=x"], "adapter.method=full has none"),
        (SFTConfig, ["adapter.method=lora", "train.parallel.tensor=2"], "train.parallel.tensor=2 splits layers"),
        (SFTConfig, ["adapter.method=lora", "quantize=nf4", "train.parallel.shard=2"], "train.parallel.shard=2 slices numbers"),
        (SFTConfig, ["adapter.method=compacter", "train.parallel.shard=2"], "train.parallel.shard=2 slices factors that all layers"),
        (SFTConfig, ["adapter.method=lorra"], "adapter.method"),
        (SFTConfig, ["adapter.method=ia3", "adapter.rank=64"], "adapter.rank is set, and adapter.method=ia3 does not read it"),
        (SFTConfig, ["adapter.rank=8"], "adapter.method=full does not read it; leave it out, or set adapter.method=lora or dora"),
        (SFTConfig, ["adapter=lora"], "write adapter.method=lora"),
        (SFTConfig, ["adapter.also=[norms]"], "adapter.also is set, and adapter.method=full does not read it"),
        (SFTConfig, ["adapter.method=lora", "adapter.bottleneck.size=7"], "adapter.bottleneck is set, and adapter.method=lora does not"),
        (SFTConfig, ["adapter.method=selective", "adapter.also=[norms]", "adapter.targets=[x]"], "adapter.targets is set"),
        (PretrainConfig, [], "give a tokenizer for a new model, or a base model"),
        (PretrainConfig, ["tokenizer=t", "adapter.method=lora"], "without base=MODEL it is a new one"),
    ],
)
def test_what_does_not_go_together_is_told_at_once(kind: Any, settings: list[str], told: str) -> None:
    given = ["model=m", "data=d"] if kind is SFTConfig else ["data=d"]
    with pytest.raises(ConfigError, match=told):
        load(kind, parse_overrides([*given, *settings]))


def test_another_base_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    stage = sft(tmp_path / "run", base, data, "adapter.method=lora")
    other = tmp_path / "other"
    torch.manual_seed(5)
    (other).mkdir()
    hf.save(Transformer(hf.read_config(base)), other)
    with pytest.raises(ModelError, match="was trained on other weights"):
        files.load_into(hf.load(other), stage / "adapter", files.weights_digest(other))
