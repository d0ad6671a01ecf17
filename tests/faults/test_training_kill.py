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


def every_point_of_one_save() -> list[dict[str, object]]:
    """The second save, at its system calls: before, after and in the middle."""
    points = [("save_file", 4, "middle"), ("save_file", 5, "before"), ("save_file", 6, "after"), ("os.replace", 5, "after")]
    points += [("os.fsync", 25, "before"), ("os.fsync", 33, "before"), ("os.rename", 2, "before"), ("os.rename", 2, "after")]
    points += [("retain", 2, "before"), ("retain", 2, "after")]
    return [{"point": point, "nth": nth, "when": when, "do": "kill"} for point, nth, when in points]


def sweep(folder, kills, config):
    """Runs that are killed once each, and some that are killed again and again, against one that is not."""
    runs = {"plain": [None]} | {f"killed-{index}": [kill, None] for index, kill in enumerate(kills)}
    runs |= {f"often-{index}": [*kills[index : index + 5], None] for index in range(0, len(kills) // 2, 4)}
    plan = [{"folder": str(folder / name), "attempts": attempts, "config": config} for name, attempts in runs.items()]
    statuses = run_plan(folder, plan)
    expected = outcome(folder / "plain")
    for (name, attempts), ended in zip(runs.items(), statuses, strict=True):
        assert ended[-1] == 0 and set(ended) <= {0, -9}, (attempts, ended)
        assert outcome(folder / name) == expected, attempts
    return sum(status == -9 for ended in statuses for status in ended)


def test_kill_minus_nine_sample(tmp_path):
    short = {**CONFIG, "steps": 15, "accumulation": 2, "checkpoint": {"every_steps": 4, "keep_last": 1}}
    kills = every_point_of_one_save()
    assert sweep(tmp_path, [*kills, *faults(4, seed=1)], short) >= len(kills)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 3},
        {"optimizer": {"name": "muon"}},
        {"precision": "bf16"},
        {"activations": "recompute", "checkpoint": {"every_steps": 3, "keep_last": 1}},
    ],
)
def test_kill_minus_nine_sweep(tmp_path, changes):
    assert sweep(tmp_path, faults(40, seed=2), {**CONFIG, **changes}) >= 40
