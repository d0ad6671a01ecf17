"""kill -9 at any point, also inside a save: the same command again ends in the same bits and the same log."""

import random

import pytest
from training_faults import CONFIG, STEPS, outcome, run_plan

# Passings of each point in an uninterrupted run, roughly: a fault is drawn from within.
# Saves are made beside the loop unless a test says otherwise (CONFIG).
INSIDE_SAVE = {"os.rename": 6, "os.replace": 20, "os.fsync": 110, "os.mkdir": 7, "shutil.rmtree": 4, "save_file": 18, "retain": 6}


def faults(count: int, seed: int, sharded: bool = False) -> list[dict[str, object]]:
    """Random kills, two thirds of them inside a save."""
    generator = random.Random(seed)
    inside = {**INSIDE_SAVE, **({"save_file": 6, "write_share": 12} if sharded else {})}
    drawn: list[dict[str, object]] = []
    for _ in range(count):
        if generator.random() < 0.33:
            point = generator.choice(["loss", "loss", "evaluate", "samples"])
            most = {"loss": STEPS, "evaluate": 5, "samples": 5}[point]
        else:
            point = generator.choice(list(inside))
            most = inside[point]
        cut = ["before", "middle", "after"]
        moments = {"save_file": cut, "write_share": cut, "shutil.rmtree": cut, "os.mkdir": ["before"]}
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
    short = {**CONFIG, "steps": 15, "accumulation": 2, "checkpoint": {"every_steps": 4, "keep_last": 1, "asynchronous": True}}
    kills = every_point_of_one_save()
    assert sweep(tmp_path, [*kills, *faults(4, seed=1)], short) >= len(kills)


def test_kill_while_the_last_checkpoint_is_replaced_by_one_with_its_evaluation(tmp_path):
    """SIGTERM in the last step saves before the last evaluation; the next attempt writes that checkpoint anew, and is killed there."""
    config = {**CONFIG, "steps": 6, "checkpoint": {"every_steps": 4, "keep_last": 1}}
    stop = {"point": "loss", "nth": 6, "do": "term"}
    points = [("save_file", 1, "middle"), ("os.rename", 1, "before"), ("os.rename", 1, "after"), ("os.rename", 2, "before")]
    points += [("os.rename", 2, "after"), ("shutil.rmtree", 1, "before"), ("shutil.rmtree", 1, "middle"), ("retain", 1, "before")]
    kills = [{"point": point, "nth": nth, "when": when, "do": "kill"} for point, nth, when in points]
    runs = [[None], [stop, None], *([stop, kill, None] for kill in kills)]
    plan = [{"folder": str(tmp_path / str(number)), "attempts": run, "config": config} for number, run in enumerate(runs)]
    assert run_plan(tmp_path, plan) == [[0], [143, 0], *[[143, -9, 0]] * len(kills)]
    expected = outcome(tmp_path / "0")
    for number, run in enumerate(runs):
        assert outcome(tmp_path / str(number)) == expected, run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpoint": {"every_steps": 5}},
        {"checkpoint": {"every_steps": 5, "format": "sharded"}},
        {"checkpoint": {"every_steps": 5, "format": "sharded", "asynchronous": True}},
        {"accumulation": 3},
        {"optimizer": {"name": "muon"}},
        {"optimizer": {"name": "lion", "ema_decay": 0.9}},
        {"optimizer": {"name": "adafactor"}, "checkpoint": {"every_steps": 3, "keep_last": 1, "average_last": 3, "asynchronous": True}},
        {"precision": "bf16"},
        {"activations": "full", "checkpoint": {"every_steps": 3, "keep_last": 1}},
    ],
)
def test_kill_minus_nine_sweep(tmp_path, changes):
    sharded = changes.get("checkpoint", {}).get("format") == "sharded"
    assert sweep(tmp_path, faults(40, seed=2, sharded=sharded), {**CONFIG, **changes}) >= 40
