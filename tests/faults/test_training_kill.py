"""kill -9 at any point, also inside a save: the same command again ends in the same bits and the same log."""

import random

import pytest
from training_faults import CONFIG, STEPS, outcome, run_plan

# Passings of each point in an uninterrupted run, roughly: a fault is drawn from within.
INSIDE_SAVE = {"os.rename": 6, "os.replace": 20, "os.fsync": 110, "os.mkdir": 7, "shutil.rmtree": 10, "save_file": 18, "retain": 6}


def faults(count: int, seed: int) -> list[dict[str, object]]:
    """Random kills, two thirds of them inside a save."""
    generator = random.Random(seed)
    drawn: list[dict[str, object]] = []
    for _ in range(count):
        if generator.random() < 0.33:
            point = generator.choice(["loss", "loss", "evaluate", "samples"])
            most = {"loss": STEPS, "evaluate": 5, "samples": 5}[point]
        else:
            point = generator.choice(list(INSIDE_SAVE))
            most = INSIDE_SAVE[point]
        moments = {"save_file": ["before", "middle", "after"], "shutil.rmtree": ["before", "middle", "after"], "os.mkdir": ["before"]}
        when = generator.choice(moments.get(point, ["before", "after"]))
        drawn.append({"point": point, "nth": generator.randint(1, most), "when": when, "do": "kill"})
    return drawn


def sweep(folder, count, seed, config):
    """`count` runs that are killed once each, and some that are killed again and again, against one that is not."""
    drawn = faults(count, seed)
    plan = [{"folder": str(folder / "plain"), "attempts": [None], "config": config}]
    plan += [{"folder": str(folder / f"killed-{index}"), "attempts": [fault, None], "config": config} for index, fault in enumerate(drawn)]
    plan += [
        {"folder": str(folder / f"often-{index}"), "attempts": [*drawn[index : index + 5], None], "config": config}
        for index in range(0, count // 2, 4)
    ]
    statuses = run_plan(folder, plan)
    expected = outcome(folder / "plain")
    for run, ended in zip(plan, statuses, strict=True):
        assert ended[-1] == 0 and set(ended) <= {0, -9}, (run, ended)
        assert outcome(type(folder)(run["folder"])) == expected, run
    return sum(status == -9 for ended in statuses for status in ended)


def test_kill_minus_nine_sample(tmp_path):
    assert sweep(tmp_path, count=8, seed=1, config=CONFIG) >= 10


def test_kill_at_every_point_of_one_save(tmp_path):
    """The second save, at each of its system calls: before, after and in the middle."""
    attempts = [
        {"point": point, "nth": nth, "when": when, "do": "kill"}
        for point, nths, whens in [
            ("save_file", (4, 5, 6), ("before", "middle", "after")),
            ("os.rename", (2,), ("before", "after")),
            ("os.replace", (5,), ("after",)),
            ("os.fsync", (20, 30), ("before",)),
            ("retain", (2,), ("before", "after")),
        ]
        for nth in nths
        for when in whens
    ]
    config = {"steps": 12, "checkpoint": {"every_steps": 4, "keep_last": 1}}
    plan = [{"folder": str(tmp_path / str(index)), "attempts": [fault, None], "config": config} for index, fault in enumerate(attempts)]
    plan.append({"folder": str(tmp_path / "plain"), "attempts": [None], "config": config})
    statuses = run_plan(tmp_path, plan)
    assert statuses == [[-9, 0]] * len(attempts) + [[0]]
    expected = outcome(tmp_path / "plain")
    for index, fault in enumerate(attempts):
        assert outcome(tmp_path / str(index)) == expected, fault


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 4},
        {"optimizer": {"name": "muon"}},
        {"precision": "bf16"},
        {"activations": "recompute", "checkpoint": {"every_steps": 3, "keep_last": 1}},
    ],
)
def test_kill_minus_nine_sweep(tmp_path, changes):
    assert sweep(tmp_path, count=40, seed=2, config={**CONFIG, **changes}) >= 40
