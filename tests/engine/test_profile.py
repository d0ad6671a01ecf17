"""A profile of the steps that were asked for, and nothing else changes."""

import gzip
import json

import pytest
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import ConfigError, NonFinite
from luyen.engine.trainer import fit
from luyen.objectives.loss import Loss


def profile_of(folder, name="steps-3-4"):
    trace = json.loads(gzip.decompress((folder / "profile" / f"{name}.json.gz").read_bytes()))
    return trace["traceEvents"], (folder / "profile" / f"{name}.txt").read_text()


def test_the_wanted_steps_are_in_the_trace_and_the_weights_are_the_same(tmp_path):
    fit(toy_algorithm(), toy_config(), tmp_path / "plain")
    fit(toy_algorithm(), toy_config(watch={"profile": "3-4"}), tmp_path / "seen")
    events, table = profile_of(tmp_path / "seen")
    updates = [event for event in events if str(event.get("name", "")).startswith("Optimizer.step")]
    assert len(updates) == 2  # one each for two steps
    assert "aten::mm" in table and "Self CPU" in table
    assert sorted(path.name for path in (tmp_path / "seen" / "profile").iterdir()) == ["steps-3-4.json.gz", "steps-3-4.txt"]
    assert not (tmp_path / "plain" / "profile").exists()
    assert (tmp_path / "plain" / "metrics.jsonl").read_bytes() == (tmp_path / "seen" / "metrics.jsonl").read_bytes()


def ended_after(steps):
    """What ends a run of the toy after so many steps."""
    stream = toy_algorithm().batches(None)
    return sum(next(stream)[0].tokens_T.numel() for _ in range(steps))


def lines_about_profiles(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "profile of" in line]


def test_a_run_that_ends_in_between_keeps_what_there_is_and_names_no_step_that_it_did_not_see(tmp_path, capsys):
    progress.use(progress.Plain())
    fit(toy_algorithm(), toy_config(watch={"profile": "1-8", "stop_tokens": ended_after(2)}), tmp_path)
    events, _ = profile_of(tmp_path, "steps-1-2")
    assert sum(str(event.get("name", "")).startswith("Optimizer.step") for event in events) == 2
    (line,) = lines_about_profiles(capsys)
    assert line.startswith("profile of steps 1 to 2 of the wanted 1 to 8, the run ended after step 2: ") and "steps-1-2.json.gz" in line


def test_a_run_that_ends_before_says_that_nothing_was_traced(tmp_path, capsys):
    progress.use(progress.Plain())
    fit(toy_algorithm(), toy_config(watch={"profile": "5-8", "stop_tokens": ended_after(2)}), tmp_path)
    assert lines_about_profiles(capsys) == ["no profile of steps 5 to 8: the run ended after step 2"]
    assert not (tmp_path / "profile").exists()


def test_the_parts_of_a_run_that_goes_on_are_two_profiles(tmp_path, capsys):
    progress.use(progress.Plain())
    fit(toy_algorithm(), toy_config(watch={"profile": "2-6", "stop_tokens": ended_after(4)}), tmp_path)
    fit(toy_algorithm(), toy_config(watch={"profile": "2-6"}), tmp_path)
    fit(toy_algorithm(), toy_config(watch={"profile": "2-6"}), tmp_path)
    first, second = lines_about_profiles(capsys)
    assert first.startswith("profile of steps 2 to 4 of the wanted 2 to 6, the run ended after step 4: ")
    assert second.startswith("profile of steps 5 to 6 of the wanted 2 to 6, steps 2 to 4 were done before: ")
    names = sorted(path.name for path in (tmp_path / "profile").glob("*.gz"))
    assert names == ["steps-2-4.json.gz", "steps-5-6.json.gz"]


def test_a_step_that_broke_is_said(tmp_path, capsys):
    progress.use(progress.Plain())
    algorithm, calls = toy_algorithm(), []

    class Broken:
        model, batches, batches_ahead = algorithm.model, algorithm.batches, algorithm.batches_ahead

        def loss(self, batch):
            calls.append(1)
            found = algorithm.loss(batch)
            return Loss(found.total * (float("nan") if len(calls) == 3 else 1.0), found.count)

    with pytest.raises(NonFinite):
        fit(Broken(), toy_config(watch={"profile": "2-6"}), tmp_path)
    (line,) = lines_about_profiles(capsys)
    assert line.startswith("profile of steps 2 to 3 of the wanted 2 to 6, the run ended in step 3: ")


def test_steps_that_are_done_already_are_said(tmp_path, capsys):
    progress.use(progress.Plain())
    fit(toy_algorithm(), toy_config(), tmp_path)
    fit(toy_algorithm(), toy_config(watch={"profile": "3-4"}), tmp_path)
    assert "no profile of steps 3 to 4: they were done before it was asked for" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    "wrong, why", [("4-3", "ends before it begins"), ("7-9", "goes beyond the 8 steps"), ("3", "profile"), ("0-2", "profile")]
)
def test_wrong_steps_are_refused(wrong, why):
    with pytest.raises(ConfigError, match=why):
        toy_config(watch={"profile": wrong})
