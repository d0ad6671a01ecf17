"""`luyen export`: a sharded checkpoint becomes a folder that loads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_models import write_tokenizer

from luyen.cli.import_ import _import
from luyen.core import manifest
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
