"""What this machine cannot train is refused before any stage of a recipe is begun."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))

from toy import write_recipe  # noqa: E402

from luyen.cli.run import foretell  # noqa: E402
from luyen.core import progress  # noqa: E402
from luyen.core.config import parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402
from luyen.recipe.planning import Assumptions, outline  # noqa: E402


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("chat.train.precision=fp8", "compute capability 8.9"),
        ("chat.train.activations=offload", "expected none, selective or full"),
        ("chat.train.compile=always chat.train.activations=selective", "expected auto or never"),
        ("chat.train.parallel.shard=3", "shard 3 x tensor 1 = 3 processes; expected 1, as many as were started"),
        ("chat.train.watch.trackers=[mlflow]", "names mlflow, whose package cannot be imported"),
    ],
)
def test_the_last_stage_is_looked_at_before_the_first(
    tmp_path: Path, word: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    made = plan(write_recipe(tmp_path), parse_overrides([*word.split(), "base.train.device=cpu", "chat.train.device=cpu"]))
    with pytest.raises(ConfigError, match=told):
        foretell(made, tmp_path / "run")
    assert not (tmp_path / "run").exists() and "estimate" not in capsys.readouterr().out


LAYOUTS = [
    ("parallel.tensor=3", "train.parallel.tensor 3; found num_heads 4"),
    ("parallel.pipeline=2 parallel.pipeline_stages=4 accumulation=8", "pipeline_stages; found 8; expected at most"),
    ("parallel.shard=2 optimizer.name=muon", "expected adamw or lion or sgd"),
    ("parallel.pipeline=2 accumulation=1", "micro-batches of a step; found 1"),
]


@pytest.mark.parametrize(("words", "told"), LAYOUTS)
def test_a_layout_is_looked_at_before_the_first_stage(words: str, told: str, tmp_path: Path) -> None:
    words = " ".join(f"chat.train.{word}" for word in words.split())
    made = plan(write_recipe(tmp_path), parse_overrides(words.split()))
    with pytest.raises(ConfigError, match=told):  # a dry run needs no launcher to see it
        foretell(made, tmp_path / "run", dry_run=True)
    if "accumulation" not in words and "muon" not in words:
        with pytest.raises(ConfigError, match=told):
            outline(made, Assumptions({}, 0.4, {}, None, 1.0, 1))


def test_a_dry_run_says_how_many_processes_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(write_recipe(tmp_path), parse_overrides(["chat.train.parallel.shard=2"]))
    monkeypatch.setattr(progress, "_display", progress.Plain())
    foretell(made, tmp_path / "run", dry_run=True)
    told = capsys.readouterr().out
    assert re.search(r"^chat needs 2 processes; start it by: \S*torchrun --standalone --nproc-per-node 2 -m luyen.cli.main$", told, re.M)
