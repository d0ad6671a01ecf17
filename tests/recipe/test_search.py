"""Searching for settings: what is read and refused, and that a killed search goes on with the same trials to the same result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import write_recipe

from luyen.core import manifest
from luyen.core.config import parse_overrides
from luyen.core.errors import ConfigError, NonFinite, UserError
from luyen.recipe import search as searching
from luyen.recipe.graph import plan
from luyen.recipe.run import RunBusy, lock_folder
from luyen.recipe.run import run as run_recipe
from luyen.recipe.search import Goal, read_trials, search
from luyen.recipe.search_space import Dimension, read_space
from luyen.recipe.search_study import COMPLETE, FAILED, Judge, Trial

RATE = "base.train.optimizer.learning_rate=1e-5..1e-1"
WORDS = [RATE, "base.batch.rows=1,2"]
DRIVER = """
import sys; from pathlib import Path
from luyen.recipe.search import Goal, search; from luyen.recipe.search_space import read_space
search(read_space(Path(sys.argv[1]), sys.argv[3:], None), Goal(7), Path(sys.argv[2]))
"""


def test_ranges_are_read(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    words = [*WORDS, "base.train.steps=4..8", "base.train.optimizer.weight_decay=0..0.2", "base.train.evaluate_every=1"]
    rate, rows, steps, decay = read_space(recipe, words, None).dimensions
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-5, 0.1, True, False)
    assert rows.choices == (1, 2)
    assert (steps.ends, steps.log) == ((4, 8), False)
    assert (decay.ends, decay.log) == ((0.0, 0.2), False)
    key, decay_key = "base.train.optimizer.clip_norm", "base.train.optimizer.weight_decay"
    clip, plain, decay = read_space(
        recipe, [f"{key}=0.5..2.0", f"{decay_key}=0.1..0.2:linear", "base.batch.rows=1..4:log"], None
    ).dimensions
    assert clip.log and not plain.log and decay.log and decay.whole
    (wide,) = read_space(recipe, [f"{key}=1..100"], None).dimensions
    (even,) = read_space(recipe, [f"{key}=1..100:linear"], None).dimensions
    assert (wide.whole, wide.log, even.whole, even.log) == (False, True, False, False)
    (weight,) = read_space(recipe, [f"{decay_key}=0..1"], None).dimensions
    assert not weight.whole, "0..1 of a key that holds any number"
    named = read_space(recipe, ["base.batch.rows=1,2", "chat.prompts=[a, b]", "base.prompts=[x]"], None, "base")
    assert named.fixed["chat"] == {"prompts": ["a", "b"]} and named.own() == {"base.batch.rows": 2}
    assert read_space(recipe, ["base.batch.rows=4,8"], None).own() is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base.train.optimizer.learning_rat=1e-4..1e-2"], "learning_rate"),
        (["base.batch.rows=1,2", "base.batch.rows=4"], "is set beside it"),
        (["base.batch.rows=1,2", "base.batch={rows: 4}"], "is set beside it"),
        (["base.batch.rows=1,2", "chat.batch.rows=1,2"], "keys of one stage"),
        (["base.batch.rows=8..2"], "LOW < HIGH"),
        (["base.batch.rows=0..2"], "base"),
        (["base.batch.rows=4"], "nothing to search"),
        (["basis.batch.rows=1,2"], "Did you mean 'base'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_space(write_recipe(tmp_path), words, None)


def killed(command: list[str], folder: Path, trial: int) -> None:
    """Start the search and end it by SIGKILL once a trial has begun to train."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = folder / "trials" / f"{trial:04d}" / "base" / "metrics.jsonl"
    until = time.monotonic() + 60
    while not mark.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_search_ends_as_one_that_was_not(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    command = [sys.executable, "-c", DRIVER, str(recipe), str(tmp_path / "killed"), *WORDS]
    killed(command, tmp_path / "killed", 6)
    before = read_trials(tmp_path / "killed")
    assert before and before[-1].state == "running", "the kill came in the middle of a trial"
    for name in ("killed", "whole"):
        subprocess.run([*command[:4], str(tmp_path / name), *WORDS], check=True, capture_output=True)
    found = {name: json.loads((tmp_path / name / "search.json").read_text()) for name in ("killed", "whole")}
    assert found["killed"] == found["whole"]
    assert len(found["whole"]["trials"]) == 7


@pytest.mark.slow
def test_a_search_stopped_inside_a_trial_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast sample of the kill; here nothing can be saved on the way out either."""
    space, hopeless = read_space(write_recipe(tmp_path), WORDS, None), Judge.hopeless

    def stopping(*given: object) -> bool:
        if len(given[1]) == 6:  # type: ignore[arg-type]
            raise KeyboardInterrupt
        return hopeless(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Judge, "hopeless", stopping)
        with pytest.raises(KeyboardInterrupt):
            search(space, Goal(7), tmp_path / "stopped")
    assert read_trials(tmp_path / "stopped")[-1].state == "running"
    search(space, Goal(7), tmp_path / "stopped")
    search(space, Goal(7), tmp_path / "whole")
    assert (tmp_path / "stopped" / "search.json").read_text() == (tmp_path / "whole" / "search.json").read_text()
    with pytest.raises(UserError, match="other pruner"):
        search(space, Goal(7, "none"), tmp_path / "whole")


@pytest.mark.slow
def test_importance_is_said_once_ten_trials_are_complete(tmp_path: Path) -> None:
    found = search(read_space(write_recipe(tmp_path), WORDS, None), Goal(11, "none"), tmp_path / "out")
    assert set(found["importance"]) == {word.partition("=")[0] for word in WORDS}
    assert sum(found["importance"].values()) == pytest.approx(1)


def test_a_trial_that_is_not_finite_has_failed_and_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = searching.run

    def breaking(plan: object, folder: Path, **given: object) -> None:
        if folder.name == "0000":
            raise NonFinite("loss is nan at step 1")
        run(plan, folder, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(searching, "run", breaking)
    found = search(read_space(write_recipe(tmp_path), WORDS, None), Goal(2), tmp_path / "out")
    assert [trial["state"] for trial in found["trials"]] == ["failed", "complete"]
    assert found["trials"][0]["reason"] == "loss is nan at step 1"
    assert found["best"]["number"] == 1


@pytest.mark.parametrize("pruner", ["median", pytest.param("asha", marks=pytest.mark.slow)])
def test_a_hopeless_trial_is_pruned_at_an_evaluation(tmp_path: Path, pruner: str) -> None:
    found = search(read_space(write_recipe(tmp_path), WORDS, None), Goal(10, pruner), tmp_path / "out")
    ended = [trial for trial in found["trials"] if trial["state"] == "pruned"]
    assert ended and all(list(trial["values"]) == ["2"] for trial in ended), "of evaluations after steps 2 and 4 only the first was made"


def test_the_first_trial_is_the_recipe_itself_and_the_best_is_an_ordinary_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    found = search(read_space(recipe, WORDS, None), Goal(3, "none"), tmp_path / "out")
    first = found["trials"][0]
    assert first["own"] and first["params"] == {"base.train.optimizer.learning_rate": 1e-3, "base.batch.rows": 2}
    assert not any(trial["own"] for trial in found["trials"][1:])
    place = tmp_path / "out" / "trials" / f"{found['best']['number']:04d}" / "base"
    run_recipe(plan(recipe, parse_overrides(found["best"]["settings"].split())), tmp_path / "again")
    again, trial = (manifest.read(folder)["files"] for folder in (tmp_path / "again" / "base", place))
    assert again["model/model.safetensors"] == trial["model/model.safetensors"], "the pasted settings give the trial's bits"
    assert again["metrics.jsonl"] == trial["metrics.jsonl"]
    with lock_folder(tmp_path / "out"), pytest.raises(RunBusy):
        search(read_space(recipe, WORDS, None), Goal(3, "none"), tmp_path / "out")


def judge(pruner: str = "median") -> Judge:
    return Judge((Dimension("a.rate", 1e-4, 1.0, log=True),), "minimize", pruner, 2, 0)


def test_a_proposal_depends_on_the_finished_trials_alone() -> None:
    trials = [Trial(n, {"a.rate": 10.0 ** -(n % 4 + 0.5)}, state=COMPLETE, value=float(n % 4), values={"2": float(n)}) for n in range(8)]
    assert judge().propose(trials) == judge().propose([*trials])
    assert judge().propose(trials) != judge().propose(trials[:-1])
    value = judge().propose(trials)["a.rate"]
    assert value == float(f"{value:.4g}") and 1e-4 <= value <= 1.0


def test_values_that_failed_are_avoided() -> None:
    """Without being told of failures TPE would propose near the best, which here are the smallest that did not fail."""
    good = [Trial(n, {"a.rate": 0.01 * 1.1**n}, state=COMPLETE, value=2.0, values={"2": 2.0}) for n in range(6)]
    bad = [Trial(6 + n, {"a.rate": 0.5 + n / 40}, state=FAILED, reason="not finite") for n in range(8)]
    proposed = [
        judge().propose([*good, *bad, *[Trial(14 + n, {"a.rate": 0.9}, state=FAILED) for n in range(k)]])["a.rate"] for k in range(6)
    ]
    assert all(value < 0.3 for value in proposed), proposed


def test_successive_halving_counts_rungs_again_after_a_kill() -> None:
    """The kill came after later figures were kept than the checkpoint has: the decision is that of the first time."""
    better = [Trial(n, {"a.rate": 0.1}, state=COMPLETE, value=1.0, values={"2": 1.0, "8": 1.0}, rungs={"completed_rung_0": 1.0})
              for n in range(4)]  # fmt: skip
    trial = Trial(4, {"a.rate": 0.2}, values={"2": 3.0})
    assert judge("asha").hopeless([*better, trial], 2) and trial.rungs == {"completed_rung_0": 3.0}
    assert judge("asha").hopeless([*better, trial], 2), "asked again of what was kept"
    trial.values = {"2": 0.5, "4": 9.0, "8": 9.0}
    assert not judge("asha").hopeless([*better, trial], 2)
    judge("asha").hopeless([*better, trial], 8)
    assert trial.rungs == {"completed_rung_0": 0.5, "completed_rung_1": 9.0}, "each rung has the figure of its own step"


def test_memory_that_does_not_suffice_fails_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = searching.run

    def breaking(plan: object, folder: Path, **given: object) -> None:
        if folder.name != "shared":
            raise MemoryError("no room")
        run(plan, folder, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(searching, "run", breaking)
    found = search(read_space(write_recipe(tmp_path), WORDS, None), Goal(1), tmp_path / "out")
    assert found["best"] is None and found["trials"][0]["reason"] == "out of memory: no room"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_kills_at_random_moments_change_nothing(tmp_path: Path, pruner: str) -> None:
    recipe = write_recipe(tmp_path, steps=8, every=2)
    driver = DRIVER.replace("Goal(7)", f"Goal(9, {pruner!r})")
    command = [sys.executable, "-c", driver, str(recipe), str(tmp_path / "killed"), *WORDS]
    started = time.monotonic()
    subprocess.run([*command[:4], str(tmp_path / "whole"), *WORDS], check=True, capture_output=True)
    seconds, chance, kills = time.monotonic() - started, random.Random(pruner), 0
    for _ in range(8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.4, 0.7) * seconds)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills
    subprocess.run(command, check=True, capture_output=True)
    found = {name: (tmp_path / name / "search.json").read_text() for name in ("killed", "whole")}
    assert found["killed"] == found["whole"]
    assert any(trial["state"] == "pruned" for trial in json.loads(found["whole"])["trials"])
