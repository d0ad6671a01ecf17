"""`luyen merge`: a folder that loads, the difference printed, and nothing written when it is too large."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from toy_models import write_model

from luyen.adapters import files
from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.adapters.foreign import other_name
from luyen.cli import merge
from luyen.core import manifest
from luyen.core.config import dump, load
from luyen.core.errors import ConfigError, LuyenError, ModelError, UserError
from luyen.models import hf
from luyen.models.transformer import Transformer
from luyen.recipe.configs import SFTConfig


def write_adapter(base: Path, folder: Path, seed: int, **values: object) -> Transformer:
    model = files.open_model(base)
    config = load(AdapterConfig, {"method": "lora", "rank": 2, **values})
    torch.manual_seed(seed)
    adapt(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    files.save(model, config, folder, base=str(base), digest=files.weights_digest(base))
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = write_model(tmp_path / "base")
    write_adapter(base, tmp_path / "one", 1)
    write_adapter(base, tmp_path / "two", 2, lora={"scaling": "root"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(merge.command("merge"), words)


def test_one_adapter_becomes_a_model_that_names_what_it_was_made_of(folder: Path) -> None:
    done = run("base", "one", "out=model")
    assert done.exit_code == 0, done.exception
    said = done.output.splitlines()
    assert said[0].startswith("merged against unmerged: logits differ by at most") and said[-1] == "model"
    told = manifest.verify(folder / "model")
    assert told["kind"] == "model" and told["lineage"]["adapters"] == {"one": files.weights_digest("one")}
    assert told["lineage"]["base_weights"] == files.weights_digest("base")
    ids = torch.arange(30)[None]
    expected, found = files.open_model("one"), hf.load("model")
    torch.testing.assert_close(found.logits(found(ids)), expected.logits(expected(ids)), rtol=1e-4, atol=1e-4)
    assert (folder / "model" / "tokenizer.json").is_file() and not files.is_adapter("model")


def test_two_become_one_adapter_or_a_sparse_model(folder: Path) -> None:
    (folder / "text.txt").write_text("Xin chào thế giới. " * 20)
    done = run("base", "one", "two", "out=both", "what=adapter", "weights=[1,0.5]", "text=text.txt")
    assert done.exit_code == 0, done.exception
    assert files.read_config("both").rank == 4 and manifest.verify(folder / "both")["base"]["weights"] == files.weights_digest("base")
    cut = run("base", "one", "two", "out=cut", "what=adapter", "how=svd", "rank=1")
    assert cut.exit_code == 0 and "rank cut: " in cut.output
    sparse = run("base", "one", "two", "out=sparse", "how=ties", "density=0.3")
    assert sparse.exit_code == 0, sparse.exception
    for said in (cut.output.splitlines(), sparse.output.splitlines()):
        held, away = (float(line.split("at most ")[1].split(",")[0]) for line in said[:2])
        assert said[0].startswith("checked: the file holds the combined change: logits differ by")
        assert said[1].startswith("how far it is from the sum of the adapters: logits differ by") and away > 100 * held
    assert json.loads((folder / "sparse" / "luyen.json").read_text())["lineage"]["config"]["how"] == "ties"


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["base", "one", "out=x", "tolerance=1e-12"], ModelError, "nothing is written.*at most 1e-12"),
        (["base", "out=x"], UserError, "at least one adapter"),
        (["one", "base", "out=x"], UserError, "base is not an adapter.*The base comes first"),
        (["base", "one", "out=x", "how=tis"], ConfigError, "how"),
        (["base", "one"], ConfigError, "out"),
        (["base", "one", "out=x", "density=0.5"], UserError, "density=0.5 is not read by how=linear.*how=ties or dare"),
        (["base", "one", "out=x", "how=ties", "rank=4"], UserError, "rank=4 is not read by how=ties"),
        (["base", "one", "out=x", "how=svd", "seed=0"], UserError, "seed=0 is not read by how=svd"),
        (["base", "one", "out=x", "text=none.txt"], UserError, "none.txt cannot be read"),
        (["base", "one", "two", "out=x", "weights=[1]"], ModelError, "weights; found 1; expected 2"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(folder: Path, words: list[str], kind: type[LuyenError], told: str) -> None:
    with pytest.raises(kind, match=told):
        raise run(*words).exception or AssertionError("no error")
    assert not (folder / "x").exists()


def test_an_adapter_of_others_that_names_another_base_is_told(folder: Path) -> None:
    (folder / "one" / manifest.MANIFEST).unlink()
    keys = json.loads((folder / "one" / files.CONFIG).read_text())
    for named, told in (("someone/Base@main", False), ("someone/llama", True), (None, False)):
        (folder / "one" / files.CONFIG).write_text(json.dumps({**keys, "base_model_name_or_path": named}))
        done = run("base", "one", "out=model")
        assert done.exit_code == 0, done.exception
        assert ("one names someone/llama as its base and is put on base" in done.output) == told
    cached = "/home/me/.cache/huggingface/hub/models--someone--llama/snapshots/0123abc"
    (folder / "one" / files.CONFIG).write_text(json.dumps({**keys, "base_model_name_or_path": cached}))
    assert other_name("one", "other/llama") == "" and f"names {cached}" in other_name("one", "other/base")


def test_an_interrupted_run_is_not_finished_and_a_finished_one_has_its_adapter_named(folder: Path) -> None:
    config = dump(load(SFTConfig, {"model": "base", "data": "rows.jsonl", "adapter": {"method": "lora"}}))
    (stage := folder / "runs" / "sft" / "sft").mkdir(parents=True)
    recipe = {"version": 1, "name": "sft", "seed": 0, "stages": {"sft": {"do": "sft", **config}}}
    (stage.parent / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe))
    (stage.parent / "events.jsonl").write_text(json.dumps({"event": "interrupted", "stage": "sft"}) + "\n")
    for name in ("runs/sft", "runs/sft/sft", "runs/sft/sft/adapter"):
        told = "the run runs/sft is not finished, so it has no adapter yet: sft was stopped.*Go on with: luyen sft .*model=base"
        with pytest.raises(UserError, match=told):
            raise run("base", name, "out=x").exception or AssertionError("no error")
    (folder / "one").rename(stage / "adapter")
    with pytest.raises(UserError, match="runs/sft is a run; expected one adapter. Name runs/sft/sft/adapter"):
        raise run("base", "runs/sft", "out=x").exception or AssertionError("no error")
    assert run("base", "runs/sft/sft", "out=x").exit_code == 0


def test_what_stands_at_out_is_not_ours_to_replace(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("precious")
    for out, told in (("mine", "was not made by Luy"), ("one", "holds what is merged"), (".", "holds what is merged")):
        refused = run("base", "one", f"out={out}")
        assert refused.exit_code and isinstance(refused.exception, UserError) and told in str(refused.exception)
    assert (folder / "mine" / "notes.txt").read_text() == "precious" and files.is_adapter(folder / "one")


def test_the_chat_template_of_the_first_adapter_goes_with_the_model(folder: Path) -> None:
    for name in ("one", "two"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((folder / "base" / file).read_bytes())
        (folder / name / "chat_template.jinja").write_text(f"{name}: {{{{ messages[0]['content'] }}}}")
    done = run("base", "one", "two", "out=model")
    assert done.exit_code == 0, done.exception
    assert (folder / "model" / "chat_template.jinja").read_text().startswith("one: ")
