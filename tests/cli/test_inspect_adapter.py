"""What an adapter would train, shown before anything is trained."""

from pathlib import Path

import pytest
from toy_models import write_model

from luyen.cli import inspect as command
from luyen.core.errors import ConfigError


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


def test_few_bits_take_less(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, few = (inspect(capsys, f"model={model}", "adapter.method=lora", f"quantize={kind}") for kind in ("none", "nf4"))
    assert "held in nf4, 0.516 bytes a weight" in few and "bytes a weight" not in whole


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("adapter.method=lora", "adapter.targets=[q_prj]"), "Did you mean 'q_proj'"),
        (("adapter.method=lora", "adapter.rank=17"), "expected at most 16"),
        (("data.jsonl", "adapter.method=lora"), "DATA or an adapter"),
    ],
)
def test_what_does_not_fit_is_told(model: Path, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        command._inspect((f"model={model}", *words))
