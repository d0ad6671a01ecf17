"""`luyen search --rate-finder`: which rate to take, where it diverged, for every optimizer; and the rate that it prints trains."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from luyen.algorithms.pretrain import Pretrain
from luyen.cli.search import command
from luyen.core.config import parse_overrides
from luyen.core.errors import Interrupted, UserError
from luyen.core.files import read_jsonl
from luyen.objectives.loss import Loss
from luyen.recipe.graph import plan
from luyen.recipe.run import run
from luyen.recipe.search import SHARED, trial_plan

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))
from toy import write_recipe  # noqa: E402

KEY = "base.train.optimizer.learning_rate"
OPTIMIZERS = ("adamw", "lion", "sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "adafactor", "adamw8bit")))


def call(*words: str) -> Result:
    return CliRunner().invoke(command("search"), [*words, "--rate-finder"], catch_exceptions=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and a folder in which the stages before are done once for all tests here."""
    folder = tmp_path_factory.mktemp("rates")
    return write_recipe(folder), folder / "out"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_gets_a_rate_that_trains(toy: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    recipe, out = toy
    setting = f"base.train.optimizer.name={name}"
    found = call(str(recipe), setting, "--stage", "base", "--steps", "60", "--out", str(out))
    assert found.exit_code == 0, found.output
    pasted = found.stdout.splitlines()[-1]
    assert pasted.startswith(f"{KEY}=") and "Take learning rate" in found.output
    told = json.loads((out / "rates.json").read_text())
    assert (told["optimizer"], told["settings"], told["stage"]) == (name, pasted, "base")
    assert len(told["rates"]) == len(told["losses"]) == len(told["averaged"]) <= 59
    assert told["verdict"] in (out / "rates.html").read_text()
    assert not (out / "base").exists(), "the test writes no stage"
    trained = plan(recipe, parse_overrides([setting, pasted, "base.train.steps=30", "base.train.compile=never"]))
    run(trial_plan(trained, "base", out / SHARED), tmp_path / "run")
    losses = [row["loss"] for row in read_jsonl(tmp_path / "run" / "base" / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 30 and losses[-1] < 0.9 * losses[0], "the printed rate trains"


def test_a_planted_divergence_is_found(toy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss after the seventh update is not finite; the rates rise from 1e-4 to 1e-2 in ten steps."""
    recipe, out = toy
    plain, calls = Pretrain.loss, []

    def loss(self: Pretrain, batch: object) -> Loss:
        calls.append(1)
        found = plain(self, batch)  # type: ignore[arg-type]
        return Loss(found.total * (math.nan if len(calls) == 8 else 1.0), found.count)

    monkeypatch.setattr(Pretrain, "loss", loss)
    found = call(str(recipe), f"{KEY}=1e-4..1e-2", "--steps", "10", "--out", str(out))
    assert found.exit_code == 0, found.output
    told = json.loads((out / "rates.json").read_text())
    assert told["broken"] == pytest.approx(1e-4 * 100 ** (6 / 9)) and len(told["losses"]) == 6
    assert f"diverges at {told['broken']:.2g}." in found.output
    calls.extend([1] * 8)
    assert "does not diverge up to 0.01 (" in call(str(recipe), f"{KEY}=1e-4..1e-2", "--steps", "10", "--out", str(out)).output


def test_where_no_rate_helps_it_says_so_and_pastes_nothing(toy: tuple[Path, Path]) -> None:
    recipe, out = toy
    found = call(str(recipe), f"{KEY}=10..1000", "--steps", "8", "--out", str(out))
    assert isinstance(found.exception, UserError) and "made the loss fall" in str(found.exception)
    assert found.stdout.splitlines()[-1] != KEY and json.loads((out / "rates.json").read_text())["settings"] is None
    assert "No rate made the loss fall" in (out / "rates.html").read_text()


def test_the_stage_is_said_where_several_train_and_nothing_is_written_before(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path))
    error = call(recipe, "--out", str(tmp_path / "out")).exception
    assert isinstance(error, UserError) and "base and chat" in str(error) and "--stage" in str(error)
    error = call(recipe, "base.batch.rows=1..2", "--stage", "base").exception
    assert isinstance(error, UserError) and "base.batch.rows" in str(error)
    error = call(recipe, "--stage", "corpus").exception
    assert isinstance(error, UserError) and "does not train" in str(error)
    dry = call(recipe, "--stage", "base", "--dry-run", "--out", str(tmp_path / "out"))
    assert dry.exit_code == 0 and "for 100 steps of base" in dry.output
    assert not (tmp_path / "out").exists()


def test_options_that_nothing_would_read_are_refused(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path))
    error = call(recipe, "--stage", "base", "--trials", "3").exception
    assert isinstance(error, UserError) and "--trials with --rate-finder" in str(error)
    error = CliRunner().invoke(command("search"), [recipe, f"{KEY}=1e-4..1e-2", "--steps", "30"]).exception
    assert isinstance(error, UserError) and "--steps without --rate-finder" in str(error)


def test_a_stopped_one_begins_anew_with_the_stages_before_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luyen.core import interrupt

    recipe, out = str(write_recipe(tmp_path)), tmp_path / "out"
    plain = Pretrain.loss
    with monkeypatch.context() as patched:
        patched.setattr(Pretrain, "loss", lambda self, batch: (interrupt._requested.append(15), plain(self, batch))[1])
        error = call(recipe, "--stage", "base", "--steps", "10", "--out", str(out)).exception
    assert isinstance(error, Interrupted) and "Go on with: " in str(error) and not (out / "rates.json").exists()
    found = call(recipe, "--stage", "base", "--steps", "10", "--out", str(out))
    assert "tokenizer: up to date" in found.output and (out / "rates.json").exists(), found.output
    (out / "asked.json").write_text("{}")
    error = call(recipe, "--stage", "base", "--out", str(out)).exception
    assert isinstance(error, UserError) and "holds a search" in str(error)
