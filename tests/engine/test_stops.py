"""Ends before the last step: each is evaluated, saved and named, and a kill moves none of those that do not depend on time."""

import dataclasses
import json

import pytest
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import ConfigError
from luyen.engine import stops
from luyen.engine.trainer import Hooks, fit


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def text_that(*values):
    """A hook that gives these figures one after another, then the last for ever: by the number of evaluations in the log."""

    def hooks(folder):
        def evaluate():
            path = folder / "metrics.jsonl"
            done = sum("heldout_bits_per_byte" in row for row in rows(folder)) if path.exists() else 0
            return {"heldout_bits_per_byte": values[min(done, len(values) - 1)]}

        return Hooks(evaluate=evaluate)

    return hooks


def test_why_a_run_is_over():
    config = toy_config(steps=10, watch={"stop_tokens": 100, "stop_hours": 0.5, "patience": 3})
    why = {"step": 5, "tokens": 99, "seconds": 1799.0, "stale": 2}
    assert stops.reason(config, **why) == ""
    for key, value, expected in [("step", 10, "steps"), ("tokens", 100, "tokens"), ("seconds", 1800.0, "time"), ("stale", 3, "plateau")]:
        assert stops.reason(config, **{**why, key: value}) == expected
    assert stops.reason(toy_config(steps=10), step=9, tokens=10**12, seconds=1e12, stale=10**6) == ""


def test_the_best_figure_and_what_came_after_it():
    config = toy_config(watch={"patience": 2})
    best, stale = None, 0
    for value, expected in [(3.0, (3.0, 0)), (2.5, (2.5, 0)), (2.5, (2.5, 1)), (float("nan"), (2.5, 2)), (2.4, (2.4, 0)), (2.6, (2.4, 1))]:
        best, stale = stops.improved(config, best, stale, {stops.MEASURE: value})
        assert (best, stale) == expected
    with pytest.raises(ConfigError, match=r"patience needs held-out text; found evaluations with accuracy; expected heldout_bits_per_byte"):
        stops.improved(config, None, 0, {"accuracy": 1.0})
    assert stops.improved(toy_config(), None, 0, {}) == (None, 0)


def test_tokens_end_a_run_at_the_step_that_reaches_them(tmp_path, capsys):
    progress.use(progress.Plain())
    whole = fit(toy_algorithm(), toy_config(), tmp_path / "whole")
    tokens = [row["tokens"] for row in rows(tmp_path / "whole")]
    config = toy_config(watch={"stop_tokens": tokens[3] + 1})
    result = fit(toy_algorithm(), config, tmp_path / "short", hooks=Hooks(evaluate=lambda: {"x": 1.0}))
    assert (result.steps, result.ended, whole.ended) == (5, "tokens", "steps") and result.tokens == tokens[4]
    assert f"stopping after step 5 of 8: {tokens[3] + 1:,} tokens are reached" in capsys.readouterr().out
    assert checkpoints(tmp_path / "short") == ["step-00000005"]
    assert [row["step"] for row in rows(tmp_path / "short") if "x" in row] == [0, 5]
    same = [row for row in rows(tmp_path / "short") if "loss" in row]
    assert same == rows(tmp_path / "whole")[:5]  # the schedule is the same as without the stop
    again = fit(toy_algorithm(seed=3), config, tmp_path / "short")
    assert dataclasses.replace(again, seconds=0, peak_bytes=0, joules=None) == dataclasses.replace(
        result, seconds=0, peak_bytes=0, joules=None
    )


def test_a_plateau_ends_a_run_also_when_it_is_killed_on_the_way(tmp_path):
    config = toy_config(steps=40, evaluate_every=2, checkpoint={"every_steps": 3}, watch={"patience": 3})
    hooks = text_that(5.0, 4.0, 4.1, 3.9, 3.9, 4.2, 4.0, 1.0)  # at 0, 2, 4, ...: the best at 6, three after it at 12
    result = fit(toy_algorithm(), config, tmp_path / "plain", hooks=hooks(tmp_path / "plain"))
    assert (result.steps, result.ended, result.evaluation) == (12, "plateau", {"heldout_bits_per_byte": 4.0})
    for stop in (4, 4, 5):
        algorithm = toy_algorithm()

        def batches(state, algorithm=algorithm, stop=stop):
            for number, item in enumerate(algorithm.stream.batches(state)):
                if number == stop:
                    raise RuntimeError("power cut")
                yield item

        algorithm.batches = batches
        with pytest.raises(RuntimeError):
            fit(algorithm, config, tmp_path / "broken", hooks=hooks(tmp_path / "broken"))
    again = fit(toy_algorithm(), config, tmp_path / "broken", hooks=hooks(tmp_path / "broken"))
    assert (again.steps, again.ended) == (12, "plateau")
    assert (tmp_path / "plain" / "metrics.jsonl").read_bytes() == (tmp_path / "broken" / "metrics.jsonl").read_bytes()
    longer = fit(
        toy_algorithm(), toy_config(**{**config.model_dump(), "watch": {"patience": 9}}), tmp_path / "broken", hooks=hooks(tmp_path)
    )
    assert longer.steps > 12  # a limit that is raised goes on where the run ended


def test_time_ends_a_run_with_its_last_step_evaluated_and_saved(tmp_path, monkeypatch):
    config = toy_config(steps=1000, watch={"stop_hours": 1.0})
    seconds = iter(range(0, 10**9, 40))
    monkeypatch.setattr("luyen.engine.run.time.perf_counter", lambda: next(seconds))
    result = fit(toy_algorithm(), config, tmp_path, hooks=Hooks(evaluate=lambda: {"x": 1.0}))
    assert result.ended == "time" and 0 < result.steps < 1000 and result.seconds >= 3600
    assert checkpoints(tmp_path) == [f"step-{result.steps:08d}"]
    assert [row["step"] for row in rows(tmp_path) if "x" in row] == [0, result.steps]
    again = fit(toy_algorithm(), config, tmp_path)
    assert (again.steps, again.ended) == (result.steps, "time")


def test_patience_without_held_out_text_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="patience needs held-out text; found evaluations with nothing"):
        fit(toy_algorithm(), toy_config(watch={"patience": 1}), tmp_path)
    with pytest.raises(ConfigError, match="patience counts evaluations, and evaluate_every is 0"):
        toy_config(evaluate_every=0, watch={"patience": 1})
