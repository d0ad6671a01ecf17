"""A full disk: one line that says so, the checkpoint before it intact, and after making room the same bits."""

import re

import pytest
from training_faults import outcome, run_plan, told

from luyen.engine.checkpoint import newest_valid

CONFIG = {"steps": 9, "evaluate_every": 0, "checkpoint": {"every_steps": 3, "asynchronous": True}}
LONG = {"steps": 60, "checkpoint": {"every_steps": 60}}


def full_disk_plan(folder, attempts, config=CONFIG):
    """An undisturbed run, and one for each fault, finished by an attempt without."""
    runs = {"plain": [None], **{str(index): [fault, None] for index, fault in enumerate(attempts)}}
    return [{"folder": str(folder / name), "attempts": attempt, "config": config} for name, attempt in runs.items()]


def fault(point, nth, when="before"):
    return {"point": point, "nth": nth, "when": when, "do": "full"}


def test_no_space_in_a_save_or_in_the_log(tmp_path):
    """In the second save a failing fsync or rename or a tensor file that is half written; real limits on the size of files."""
    failures = [fault("save_file", 4, "middle"), fault("save_file", 6, "middle"), fault("os.replace", 4), fault("os.rename", 2)]
    failures += [fault("os.fsync", nth) for nth in (18, 22, 33)]
    limits = [1_000, 17_000, 40_000]
    plan = full_disk_plan(tmp_path, [*failures, *({"bytes": limit} for limit in limits)])
    plan.append({"folder": str(tmp_path / "log"), "attempts": [{"bytes": 2_000}], "config": LONG})
    plan.append({"folder": str(tmp_path / "left"), "attempts": [failures[0]], "config": CONFIG})
    statuses = run_plan(tmp_path, plan)
    assert statuses == [[0], *[[3, 0]] * (len(failures) + len(limits)), [3], [3]]
    for index in range(len(failures) + len(limits)):
        assert outcome(tmp_path / str(index)) == outcome(tmp_path / "plain"), index
        message = next(line for line in told(tmp_path / str(index)).splitlines() if line.startswith("StorageError"))
        assert ("No space left on device" if index < len(failures) else "File too large") in message
        assert "MB are free" in message and str(tmp_path / str(index)) in message
        assert index >= len(failures) or "continuing after step 3" in told(tmp_path / str(index)), index
    assert re.search(r"log/(metrics\.jsonl|timings\.jsonl|tensorboard): File too large", told(tmp_path / "log"))
    assert "A checkpoint needs 0.1 MB" in told(tmp_path / "left")
    kept = newest_valid(tmp_path / "left" / "checkpoints")
    assert kept is not None and kept.state["step"] == 3
    assert [path.name for path in (tmp_path / "left" / "checkpoints").iterdir()] == ["step-00000003"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_no_space_at_every_system_call(tmp_path, asynchronous, form):
    config = {**CONFIG, "checkpoint": {"every_steps": 3, "asynchronous": asynchronous, "format": form}}
    points = [("os.fsync", 52, "before"), ("os.replace", 10, "before"), ("os.rename", 4, "before")]
    points += [("save_file", 10, "middle")] if form == "whole" else [("save_file", 4, "middle"), ("write_share", 7, "middle")]
    attempts = [fault(point, nth, when) for point, end, when in points for nth in range(1, end)]
    statuses = run_plan(tmp_path, full_disk_plan(tmp_path, attempts, config))
    assert statuses == [[0]] + [[3, 0]] * len(attempts)
    for index, failure in enumerate(attempts):
        assert outcome(tmp_path / str(index)) == outcome(tmp_path / "plain"), failure
