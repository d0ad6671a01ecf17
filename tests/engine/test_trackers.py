"""Trackers: imported only when named, told every figure, and never able to stop or change a run."""

import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy
import pytest
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import ConfigError
from luyen.engine import checkpoint
from luyen.engine.trackers import TRACKERS
from luyen.engine.trainer import Hooks, fit

NAMES = ["wandb", "mlflow", "trackio"]


class Fake:
    """Looks like all three packages; keeps what it is told."""

    def __init__(self, fails=""):
        self.told, self.calls, self.fails = [], [], fails

    def _call(self, what, /, *arguments, **keywords):
        random.random(), numpy.random.random()  # what a package draws must not reach the run
        self.calls.append((what, arguments, keywords))
        if what == self.fails:
            raise ConnectionError("no route\nto host")
        return self

    def init(self, **keywords):
        return self._call("init", **keywords)

    def set_experiment(self, *arguments):
        return self._call("init", *arguments)

    def start_run(self, **keywords):
        return self._call("start_run", **keywords)

    def log_params(self, *arguments):
        return self._call("log_params", *arguments)

    def log(self, values, step, **keywords):
        self._call("log", **keywords)
        self.told.append((step, values))

    log_metrics = log

    def finish(self):
        self._call("finish")

    end_run = finish


@pytest.fixture
def fake(monkeypatch):
    def install(name, **keywords):
        package = Fake(**keywords)
        monkeypatch.setitem(sys.modules, name, package)
        return package

    return install


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_told_and_the_run_is_the_same(tmp_path, fake, name):
    package = fake(name)
    hooks = Hooks(evaluate=lambda: {"heldout_bits_per_byte": 2.0})
    fit(toy_algorithm(), toy_config(), tmp_path / "plain", hooks=hooks)
    config = toy_config(watch={"trackers": [name], "project": "mine"})
    fit(toy_algorithm(), config, tmp_path / "run" / "base", hooks=hooks)
    losses = [(step, values["train/loss"]) for step, values in package.told if "train/loss" in values]
    assert [step for step, _ in losses] == list(range(1, 9))
    assert [step for step, values in package.told if "evaluation/heldout_bits_per_byte" in values] == [0, 8]
    assert [call[0] for call in package.calls].count("finish") == 1
    begun = str([call for call in package.calls if call[0] in ("init", "start_run", "log_params")])
    assert "'mine'" in begun and "run/base" in begun and "'optimizer.learning_rate': 0.01" in begun
    for file in ("metrics.jsonl", "checkpoints/step-00000008/random.safetensors", "checkpoints/step-00000008/model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "run" / "base" / file).read_bytes()


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_training_goes_on(tmp_path, fake, capsys, fails):
    progress.use(progress.Plain())
    broken, whole = fake("wandb", fails=fails), fake("trackio")
    result = fit(toy_algorithm(), toy_config(watch={"trackers": ["wandb", "trackio"]}), tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "wandb failed" in line]
    assert len(said) == 1 and "training continues: ConnectionError(" in said[0] and "no route" in said[0]
    assert result.steps == 8 and [call[0] for call in broken.calls].count(fails) == 1
    assert [step for step, values in whole.told if "train/loss" in values] == list(range(1, 9))


def test_a_finished_run_begins_nothing(tmp_path, fake):
    package = fake("trackio")
    fit(toy_algorithm(), toy_config(), tmp_path)
    fit(toy_algorithm(), toy_config(watch={"trackers": ["trackio"]}), tmp_path)
    assert package.calls == []


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_one_clear_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, TRACKERS[name][0], None)
    with pytest.raises(ConfigError, match=rf"trackers names {name}, whose package cannot be imported.*pip install '\.\[{name}\]'"):
        fit(toy_algorithm(), toy_config(watch={"trackers": [name]}), tmp_path)
    with pytest.raises(ConfigError, match="trackers"):
        toy_config(watch={"trackers": ["neptune"]})


def test_nothing_is_imported_or_opened_unless_named():
    code = (
        "import socket, sys, tempfile, pathlib\n"
        "def refuse(*arguments, **keywords): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from training_toys import toy_algorithm, toy_config\n"
        "from luyen.engine.trainer import fit\n"
        "fit(toy_algorithm(), toy_config(steps=2), pathlib.Path(tempfile.mkdtemp()))\n"
        "print([name for name in ('wandb', 'mlflow', 'trackio', 'tensorboard') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert found.stdout == "[]\n", found.stderr


def test_wandb_keeps_its_files_in_the_stage_but_not_among_the_results(tmp_path, fake):
    package = fake("wandb")
    fit(toy_algorithm(), toy_config(steps=1, watch={"trackers": ["wandb"]}), tmp_path)
    where = SimpleNamespace(**next(keywords for name, _, keywords in package.calls if name == "init"))
    assert where.dir == str(tmp_path / "trackers") and (tmp_path / "trackers").is_dir()


def test_wandb_is_told_of_no_step_before_the_newest(tmp_path, fake, monkeypatch):
    """wandb drops what is filed under an older step, and a save beside the loop ends when later steps are told already."""
    told_later, plain = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *arguments: (told_later.wait(10), plain(*arguments))[1])
    packages = {name: fake(name) for name in ("wandb", "mlflow")}
    keep = Fake.log

    def log(self, values, step, **keywords):
        keep(self, values, step, **keywords)
        if step >= 6:
            told_later.set()

    monkeypatch.setattr(Fake, "log", log)
    monkeypatch.setattr(Fake, "log_metrics", log)
    saving = {"asynchronous": True, "every_steps": 4}
    fit(toy_algorithm(), toy_config(watch={"trackers": list(packages)}, checkpoint=saving), tmp_path)
    steps, beside = {}, {}
    for name, package in packages.items():
        steps[name] = [step for step, _ in package.told]
        beside[name] = [step for step, values in package.told if "time/save_beside" in values]
    assert steps["wandb"] == sorted(steps["wandb"]) and len(beside["wandb"]) == 2
    assert beside["mlflow"] == [4, 8] and steps["mlflow"] != sorted(steps["mlflow"]), "the save of step 4 ended after step 6"
