"""What this machine cannot train is refused before any stage of a recipe is begun."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))

from toy import write_recipe  # noqa: E402

from luyen.cli.run import foretell  # noqa: E402
from luyen.core.config import parse_overrides  # noqa: E402
from luyen.core.errors import ConfigError  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("chat.train.precision=fp8", "compute capability 8.9"),
        ("chat.train.activations=offload", "expected none, selective or full"),
        ("chat.train.compile=always chat.train.activations=selective", "expected auto or never"),
    ],
)
def test_the_last_stage_is_looked_at_before_the_first(tmp_path: Path, word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(write_recipe(tmp_path), parse_overrides([*word.split(), "base.train.device=cpu", "chat.train.device=cpu"]))
    with pytest.raises(ConfigError, match=told):
        foretell(made, tmp_path / "run")
    assert not (tmp_path / "run").exists() and "estimate" not in capsys.readouterr().out
