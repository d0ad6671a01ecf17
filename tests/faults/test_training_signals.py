"""SIGTERM anywhere: exit code 143, a checkpoint at the end of that step, and the same bits after going on."""

from training_faults import CONFIG, outcome, run_plan, told

POINTS = [("loss", 1), ("loss", 14), ("evaluate", 1), ("evaluate", 2), ("samples", 3), ("save_file", 5), ("os.rename", 2), ("retain", 1)]


def test_sigterm_in_training_evaluation_and_saving(tmp_path):
    runs = {"plain": [None], "often": [{"point": "loss", "nth": 3, "do": "term"}] * 3 + [None]}
    runs |= {f"{point}-{nth}": [{"point": point, "nth": nth, "do": "term"}, None] for point, nth in POINTS}
    statuses = run_plan(tmp_path, [{"folder": str(tmp_path / name), "attempts": run, "config": CONFIG} for name, run in runs.items()])
    assert statuses == [[0], [143, 143, 143, 0]] + [[143, 0]] * len(POINTS)
    expected = outcome(tmp_path / "plain")
    for name in runs:
        assert outcome(tmp_path / name) == expected, name
        assert name == "plain" or "Interrupted: stopped; the same command continues" in told(tmp_path / name)
    assert "continuing after step 14 " in told(tmp_path / "loss-14")
    assert "continuing after step 1 " in told(tmp_path / "evaluate-1")
    assert all(f"continuing after step {step} " in told(tmp_path / "often") for step in (3, 6, 9))
