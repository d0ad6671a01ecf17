"""`luyen plan`: text within 80 columns, JSON, wrong input in one line."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))

from toy import write_recipe  # noqa: E402

from luyen.cli.plan import command  # noqa: E402
from luyen.cli.plan_text import duration, number, size  # noqa: E402
from luyen.core import host_memory  # noqa: E402
from luyen.core.errors import LuyenError, UserError  # noqa: E402
from luyen.engine.devices import DEVICES  # noqa: E402

VERB = ("pretrain", "model.preset=llama-2-7b", "--vocabulary", "32000", "batch.rows=4", "train.accumulation=64", "batch.length=2048")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    command("plan").main(list(words), standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("quickstart",), ("quickstart", "--budget", "8h", "--devices", "h100,t4", "--price", "2.5", "--carbon", "400"),
        VERB, (*VERB, "--price", "h100=2.5,a100=1", "--carbon", "385", "--pue", "1.1", "train.steps=5000000"),
        (*VERB, "--most", "1"), ("evaluate", "models.a=nowhere"), ("pretrain",), ("sft", "model=nowhere"),
    ],
)  # fmt: skip
def test_text_stays_within_80_columns(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, *words)
    assert text.startswith("on this machine") or "\n\non this machine\n" in text
    for line in text.splitlines():
        assert len(line) <= 80 and line == line.rstrip(), line


def test_a_recipe_is_told_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, str(write_recipe(tmp_path)), "base.train.steps=7", "--price", "2")
    for name in ("corpus", "tokenizer", "base", "questions", "chat", "before_after"):
        assert f"\n  {name} " in text
    assert "base: pretrain, 896 tokens (7 steps of 2 rows of 64 tokens)" in text
    assert text.count("\n* ") == 2, "the cheapest of both training stages is marked"
    assert "the least money; to run it so: as the recipe says" in " ".join(text.split())
    assert "does not keep a GPU busy" in " ".join(text.split()) and "2 an hour for every device" in " ".join(text.split())
    assert text.count("tokens per parameter") == 1 and "LoRA of rank 16" in text
    assert text.count("  adapters  ") == text.count("  key-value cache  ") == 2 and text.count("LoRA, rank 16") == 1
    assert "before_after: evaluate, 64 at a time, answers of at most" in text


def test_devices_that_are_named_are_shown_in_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split() for line in told(capsys, *VERB, "--devices", "a100,l4").splitlines() if line[2:].startswith(("a100", "l4"))]
    counts = {name: [int(row[row.index(name) + 1]) for row in rows if name in row] for name in ("a100", "l4")}
    assert counts["a100"][-1] == counts["l4"][-1] == 16 and len(counts["a100"]) > 1


def test_a_run_that_fits_nowhere_and_not_here_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luyen.cli.plan.total", lambda: 24 * 10**9)
    text = " ".join(told(capsys, *VERB, "--most", "1", "--devices", "t4").split())
    assert "does not fit, here are 24 GB" in text and "at least on each of 1, it has 14" in text and "* " not in text


def test_json_holds_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(told(capsys, *VERB, "--json", "--price", "2", "--carbon", "0"))
    training = facts["training"]["pretrain"]
    assert training["parameters"]["total"] == 6_738_415_616
    assert {way["device"] for way in training["ways"]} == set(DEVICES) and training["ways"][0]["co2_grams"] == 0
    assert facts["assumed"]["prices"] == dict.fromkeys(DEVICES, 2.0) and facts["probes"] == {}
    assert training["cheapest"]["money"] == min(way["money"] for way in training["ways"])


def test_a_probe_is_told_beside_the_prediction(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("pretrain", "model.preset=llama-1m", "model.num_layers=1", "--vocabulary", "64", "batch.rows=1", "batch.length=16")
    monkeypatch.setattr("luyen.recipe.probe.STEPS", 4)
    text = " ".join(told(capsys, *words, "train.device=cpu", "--probe", "--devices", "l4").split())
    assert "a step, so" in text and "(predicted" in text and "peak memory" in text
    facts = json.loads(told(capsys, *words, "train.device=cpu", "--probe", "--devices", "l4", "--json"))
    assert facts["probes"]["pretrain"]["step_seconds"] > 0
    with pytest.raises(UserError, match="does not fit this machine.*Leave out --probe"):
        monkeypatch.setattr("luyen.cli.plan.total", lambda: 10**6)
        told(capsys, *words, "train.device=cpu", "--probe")


MISTAKES = [
    (("quickstrat",), "Did you mean 'quickstart'?"),
    (("quickstart", "base.train.stepz=3"), "Did you mean 'train.steps'?"),
    (("pretrain", "train.stepz=3"), "Did you mean 'train.steps'?"),
    (("quickstart", "pretrain"), "give one recipe or verb; found 2 words"),
    (("pretrain", "--budget", "1h"), "a verb has no budgets"),
    (("quickstart", "--devices", "h10"), "Did you mean 'h100'?"),
    (("quickstart", "--mfu", "1.5"), "--mfu; found 1.5"),
    (("quickstart", "--mfu", "nan"), "--mfu; found nan"),
    (("quickstart", "--pue", "0.5"), "--pue; found 0.5"),
    (("quickstart", "--price", "cheap"), "--price; found 'cheap'"),
    (("quickstart", "--price", "-1"), "--price; found '-1'"),
    (("quickstart", "--price", "h100=1,,"), "--price; found ''"),
    (("quickstart", "--devices", "h100", "--price", "l4=1"), "'l4' is not among the devices"),
    (("quickstart", "--carbon", "Mars"), "--carbon; found 'MARS'"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES)
def test_wrong_input_is_one_line_and_exit_code_2(words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(LuyenError) as caught:
        command("plan").main(list(words), standalone_mode=False)
    assert expected in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_figures_are_short() -> None:
    values = (0, 1e-9, 0.0042, 0.31, 0.96, 5.23, 9.96, 47, 12_345, 1.2e6, 5e8)
    assert [number(value) for value in values] == ["0", "<0.001", "0.0042", "0.31", "1.0", "5.2", "10", "47", "12,345", "1.2M", "500M"]
    assert [duration(value) for value in (0.3, 12, 200, 9000, 4e5, 2e8)] == ["0.3 s", "12 s", "3.3 min", "2.5 h", "4.6 d", "6.3 y"]
    assert [size(value) for value in (3000, 61e6, 4.2e9, 1.5e12)] == ["3.0 kB", "61 MB", "4.2 GB", "1.5 TB"]


def test_the_machines_memory_is_known() -> None:
    assert 1e8 < host_memory.total() < 1e14
