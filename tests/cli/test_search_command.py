"""`luyen search`: help, a dry run that does nothing, the remedy without optuna, and best settings that can be pasted."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from luyen.cli.search import command
from luyen.core import interrupt
from luyen.core.errors import ConfigError, Interrupted, NonFinite, UserError
from luyen.recipe.search_space import Dimension
from luyen.recipe.search_study import PRUNERS, Judge

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))
from toy import write_recipe  # noqa: E402

WORDS = ["base.train.optimizer.learning_rate=1e-4..1e-2", "base.batch.rows=1,2"]


def call(*words: str) -> Result:
    return CliRunner().invoke(command("search"), list(words), catch_exceptions=True)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path: Path) -> None:
    found = call(str(write_recipe(tmp_path)), *WORDS, "--trials", "3", "--out", str(tmp_path / "out"), "--dry-run")
    assert found.exit_code == 0, found.output
    assert "3 trials of base" in found.output
    one = call(str(write_recipe(tmp_path)), *WORDS, "--trials", "1", "--out", str(tmp_path / "out"), "--dry-run")
    assert "1 trial of base" in one.output
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    found = call(str(write_recipe(tmp_path)), *WORDS)
    assert isinstance(found.exception, UserError) and "pip install '.[search]'" in str(found.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base.train.optimizer.learning_rat=1e-4..1e-2"], "learning_rate"),
        (["base.batch.rows=8..2"], "LOW < HIGH"),
        (["base.batch.rows=0..2"], "batch.rows"),
        (["corpus.heldout_fraction=0.1..0.2"], "does not train"),
        (["--rate-finder", "--stage", "bse"], "Did you mean 'base'"),
    ],
)
def test_a_wrong_word_is_told_also_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    found = call(str(write_recipe(tmp_path)), *words)
    assert isinstance(found.exception, UserError) and said in str(found.exception)
    assert isinstance(call("quikstart", *WORDS).exception, ConfigError)


def test_a_metric_that_no_evaluation_has_ends_the_search(tmp_path: Path) -> None:
    found = call(str(write_recipe(tmp_path)), *WORDS, "--metric", "beauty", "--out", str(tmp_path / "out"))
    assert isinstance(found.exception, UserError) and "heldout_bits_per_byte" in str(found.exception)
    assert isinstance(call("toy", *WORDS).exception, ConfigError)


def test_best_settings_and_page(tmp_path: Path) -> None:
    found = call(str(write_recipe(tmp_path)), *WORDS, "--trials", "2", "--out", str(tmp_path / "out"))
    assert found.exit_code == 0, found.output
    assert "base.batch.rows=" in found.stdout.splitlines()[-1]
    assert "trial  state" in found.output and "2 trials stand behind this: 2 complete" in found.output
    assert (tmp_path / "out" / "search.html").is_file() and (tmp_path / "out" / "search.json").is_file()
    assert (tmp_path / "out" / "trials" / "0001" / "base" / "luyen.json").is_file()


def test_a_stopped_search_says_where_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (str(write_recipe(tmp_path)), *WORDS, "--stage", "base", "--trials", "1", "--out", str(tmp_path / "out"))
    with monkeypatch.context() as patched:
        patched.setattr(Judge, "hopeless", lambda *_: interrupt._requested.append(15))
        found = call(*words)
    assert isinstance(found.exception, Interrupted) and found.exception.exit_code == 143
    assert "stopped in stage base" in str(found.exception) and "Go on with: " in str(found.exception)
    found = call(*words)
    assert found.exit_code == 0 and "base: continuing" in found.output, found.output
    assert "estimate: 0 trials" in call(*words, "--dry-run").output


def test_a_search_without_a_result_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(*_: object) -> bool:
        raise NonFinite("loss is nan")

    monkeypatch.setattr(Judge, "hopeless", breaking)
    found = call(str(write_recipe(tmp_path)), *WORDS, "--trials", "1", "--out", str(tmp_path / "out"))
    assert isinstance(found.exception, UserError) and "loss is nan" in str(found.exception)
    assert (tmp_path / "out" / "search.html").is_file()


def test_no_connection_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    found = call(str(write_recipe(tmp_path)), *WORDS, "--trials", "2", "--out", str(tmp_path / "out"))
    assert found.exit_code == 0, found.output


def test_the_pruners_of_the_command_are_those_that_a_search_knows() -> None:
    (option,) = (param for param in command("search").params if param.name == "pruner")
    assert list(option.type.choices) == list(PRUNERS)
    pytest.importorskip("optuna")
    for name in PRUNERS:
        judge = Judge((Dimension("a.rate", 1e-4, 1.0, log=True),), "minimize", name, 2, 0)
        assert set(judge.propose([])) == {"a.rate"}
