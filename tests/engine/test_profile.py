"""A profile of the steps that were asked for, and nothing else changes."""

import gzip
import json

import pytest
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import ConfigError
from luyen.engine.trainer import fit


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


def test_a_run_that_ends_in_between_keeps_what_there_is(tmp_path):
    tokens = next(toy_algorithm().batches(None))[0].tokens_T.numel()
    fit(toy_algorithm(), toy_config(watch={"profile": "1-8", "stop_tokens": tokens + 1}), tmp_path)
    events, _ = profile_of(tmp_path, "steps-1-8")
    assert sum(str(event.get("name", "")).startswith("Optimizer.step") for event in events) == 2


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
