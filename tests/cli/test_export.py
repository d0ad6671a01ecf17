"""`luyen export`: a sharded checkpoint becomes a folder that loads."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_models import write_tokenizer

from luyen.cli.chat import find
from luyen.cli.export import _export
from luyen.cli.import_ import _import
from luyen.cli.inspect import InspectReadConfig, _data, _tokenizer_folder
from luyen.core import manifest, storage
from luyen.core.errors import UserError
from luyen.engine import checkpoint
from luyen.engine.config import OptimizerConfig
from luyen.engine.optim import build
from luyen.engine.saving import Saver
from luyen.engine.trainer import TrainConfig
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer
from luyen.recipe.graph import Plan
from luyen.recipe.inputs import check_inputs


def export(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luyen.cli.main", "export", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_sharded_checkpoint_becomes_a_folder_that_loads(tmp_path: Path, usual_umask: None) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    model = Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size, **size))
    config = TrainConfig.model_validate({"checkpoint": {"format": "sharded"}})
    saver = Saver(tmp_path / "stage" / "checkpoints", config.checkpoint, False, torch.device("cpu"), 1.0)
    saver.save(model, build(model, OptimizerConfig()), {"step": 3}, {}, [])
    checkpoint.save(tmp_path / "whole", model, build(model, OptimizerConfig()), {"step": 3}, {})
    done = export("stage", "tokenizer=tokenizer", "--out", "model", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "model\n", done.stderr
    assert manifest.verify(tmp_path / "model")["step"] == 3
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "luyen.json"}
    made = [path for folder in ("model", "stage", "whole") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {path.name for path in made} >= {"model.safetensors", "random.safetensors", "optimizer.safetensors"}
    assert {oct(path.stat().st_mode & 0o777) for path in made} == {"0o644"}
    loaded = hf.load(tmp_path / "model")
    assert loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    for words, told in ((["stage"], "needs a tokenizer"), (["tokenizer", "tokenizer=tokenizer"], "no checkpoint in tokenizer")):
        wrong = export(*words, "--out", "other", cwd=tmp_path)
        assert wrong.returncode == 2 and told in wrong.stderr and not (tmp_path / "other").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused = export("stage", "tokenizer=tokenizer", "--out", "mine", cwd=tmp_path)
    assert refused.returncode == 2 and "mine is not empty and was not made by Luyện" in refused.stderr and refused.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert checkpoint.newest_valid(tmp_path / "stage" / "checkpoints").state["model"]["hidden_size"] == 16


def test_an_import_leaves_what_is_not_ours(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="is not empty and was not made by Luyện"):
        _import((str(tmp_path / "a.bin"), f"tokenizer={tmp_path / 'b.bin'}"), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin"]


def test_a_run_writes_over_no_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    nothing = Plan("toy", "", 0, "", (), {})
    with pytest.raises(UserError, match="is no run and holds README.md"):
        check_inputs(nothing, tmp_path)
    (tmp_path / "recipe.resolved.yaml").write_text("{}")
    check_inputs(nothing, tmp_path)


def test_who_names_a_checkpoint_or_a_run_is_told_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = {
        "words": {"do": "tokenizer"}, "base": {"do": "pretrain", "tokenizer": "words"}, "alone": {"do": "pretrain", "tokenizer": "a b/c"},
        "chat": {"do": "sft", "model": "base"}, "never": {"do": "sft", "model": "base"},
    }  # fmt: skip
    run = Path("runs/mine")
    storage.write_json(run / "recipe.resolved.yaml", {"name": "mine", "stages": stages})
    for stage in ("base", "alone", "chat"):
        storage.write_json(run / stage / "checkpoints" / "step-00000003" / "state.json", {})
        manifest.seal(run / stage / "checkpoints" / "step-00000003", "checkpoint")
    write_tokenizer(run / "base" / "model")
    first = "luyen export runs/mine/base tokenizer=runs/mine/words --out exported"
    second = "luyen export runs/mine/alone tokenizer='a b/c' --out exported"
    with pytest.raises(UserError) as told:
        _export(("runs/mine",), None)
    third = "luyen export runs/mine/chat tokenizer=runs/mine/base/model --out exported"
    asked = "runs/mine is a run; expected a stage of it that has checkpoints"
    assert str(told.value) == f"{asked}. Write: {second} or {first} or {third}"
    with pytest.raises(UserError, match=f"needs a tokenizer; .* Write: {first}$"):
        _export(("runs/mine/base",), "out")
    with pytest.raises(UserError, match=f"needs a folder to make; .* Write: {first}$"):
        _export(("runs/mine/base", "tokenizer=runs/mine/words"), None)
    step = run / "base" / "checkpoints" / "step-00000003"
    command = f"luyen export {step} tokenizer=runs/mine/words --out exported"
    for ask in (find, _tokenizer_folder, lambda name: _data(name, InspectReadConfig())):
        with pytest.raises(UserError, match=f"is a training checkpoint.* {command}$"):
            ask(str(step))
    with pytest.raises(UserError, match="`luyen export` makes a model"):
        hf.locate(step)
    with pytest.raises(UserError, match="is a run; expected a run with a stage that has checkpoints"):
        shutil.rmtree(run)
        storage.write_json(run / "recipe.resolved.yaml", {"name": "mine", "stages": {"words": {"do": "tokenizer"}}})
        _export(("runs/mine",), "out")
