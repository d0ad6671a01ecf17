"""Saves beside the loop hold the moment they were asked for, come one after another, and tell what went wrong."""

import errno
import json
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core.errors import StorageError
from luyen.engine import checkpoint
from luyen.engine.config import CheckpointConfig, OptimizerConfig
from luyen.engine.optim import build
from luyen.engine.run import Run
from luyen.engine.saving import Copies, Saver
from luyen.engine.trainer import Hooks, fit

CPU = torch.device("cpu")
TIMING = {"seconds": 0.0, "joules": None, "logs": {}}


def trained():
    """A toy model after an update, and its optimizers."""
    model = toy_model()
    optimizers = build(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    return model, optimizers


def saver(root, **changes):
    return Saver(root, CheckpointConfig(asynchronous=True, keep_last=100, **changes), False, CPU, 10.0)


def save(one, model, optimizers, step):
    one.save(model, optimizers, {"step": step}, TIMING, [])


@pytest.fixture
def gate(monkeypatch):
    """Writing begins when the event is set."""
    event = threading.Event()
    plain = checkpoint.write

    def write(*arguments):
        event.wait(20)
        return plain(*arguments)

    monkeypatch.setattr(checkpoint, "write", write)
    return event


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_what_changes_after_a_save_is_not_in_it(tmp_path, gate, form):
    """Fifty times: every parameter, state and random generator changes before the writing begins."""
    model, optimizers = trained()
    one = saver(tmp_path, format=form)
    for step in range(50):
        gate.clear()
        live = {**checkpoint.model_tensors(model), **checkpoint.optimizer_tensors(model, optimizers)}
        before = {name: tensor.clone() for name, tensor in live.items()}
        generator = torch.get_rng_state()
        save(one, model, optimizers, step)
        with torch.no_grad():
            for tensor in live.values():
                tensor.add_(1)
        torch.rand(3)
        gate.set()
        one.wait()
        found = checkpoint.newest_valid(tmp_path)
        other, others = trained()
        checkpoint.restore(found, other, others)
        after = {**checkpoint.model_tensors(other), **checkpoint.optimizer_tensors(other, others)}
        assert found.state["step"] == step and before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(torch.get_rng_state(), generator)


def test_saves_come_one_after_another(tmp_path, gate):
    model, optimizers = trained()
    one = saver(tmp_path)
    save(one, model, optimizers, 1)
    second = threading.Thread(target=save, args=(one, model, optimizers, 2))
    second.start()
    second.join(0.2)
    assert second.is_alive() and not list(tmp_path.glob("step-*")), "the second waits for the first"
    gate.set()
    second.join(20)
    one.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert [step for step, _ in one.finished] == [1, 2]


def test_the_end_of_a_run_waits_for_the_pending_save(tmp_path, monkeypatch):
    plain = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *arguments: (time.sleep(0.3), plain(*arguments))[1])
    fit(toy_algorithm(), toy_config(checkpoint={"asynchronous": True}), tmp_path)
    assert checkpoint.newest_valid(tmp_path / "checkpoints").state["step"] == 8
    rows = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    waited, beside = ([row[name] for row in rows if name in row] for name in ("save", "save_beside"))
    assert len(waited) == len(beside) == 1 and waited[0] < 0.3 <= beside[0]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("moment", ["check", "save", "wait"])
def test_what_goes_wrong_is_raised_once_by_the_next_call(tmp_path, monkeypatch, moment):
    model, optimizers = trained()
    one = saver(tmp_path)
    save(one, model, optimizers, 1)
    one.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        save(one, model, optimizers, 1)  # onto the one that is there
        while one._background.busy:
            time.sleep(0.01)
    with pytest.raises(StorageError, match=r"cannot write .*step-00000001: No space left on device; .*A checkpoint needs 0\.1 MB"):
        save(one, model, optimizers, 2) if moment == "save" else getattr(one, moment)()
    one.check()
    one.wait()
    assert checkpoint.newest_valid(tmp_path).state["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    save(one, model, optimizers, 2)
    one.wait()
    assert checkpoint.newest_valid(tmp_path).state["step"] == 2


def test_a_failed_save_stops_the_run_at_the_next_step(tmp_path, monkeypatch):
    algorithm = toy_algorithm()
    run = Run(algorithm, toy_config(steps=20, checkpoint={"every_steps": 2, "asynchronous": True}), tmp_path, 0, Hooks())
    stream = algorithm.batches(None)
    monkeypatch.setattr(checkpoint, "save_file", full)
    run.update(stream)
    run.update(stream)
    run.save_if_due()
    while run.saver._background.busy:
        time.sleep(0.01)
    run.update(stream)
    with pytest.raises(StorageError, match="No space left on device"):
        run.save_if_due()
    run.close()


def test_copies_reuse_their_room_and_leave_alone_what_is_nobody_elses():
    live = {"a": torch.ones(3), "b": torch.zeros(2)}
    own = torch.ones(4)
    copies = Copies()
    first = copies.of({"model": {**live, "own": own}}, live)["model"]
    assert first["own"] is own and not any(first[name] is live[name] for name in live)
    live["a"].add_(1)
    second = copies.of({"model": {**live, "own": own}}, live)["model"]
    assert second["a"] is first["a"] and torch.equal(second["a"], torch.full((3,), 2.0))


def test_on_a_cpu_saves_are_made_in_the_loop_unless_asked_otherwise(tmp_path):
    for asked, device, expected in (("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True), (False, "cuda", False)):
        assert Saver(tmp_path, CheckpointConfig(asynchronous=asked), False, torch.device(device), 1.0).asynchronous is expected
    for asked, split, expected in (("auto", True, True), ("auto", False, False), ("whole", True, False), ("sharded", False, True)):
        assert Saver(tmp_path, CheckpointConfig(format=asked), split, CPU, 1.0).sharded is expected


def test_equal_runs_end_alike_whether_saves_are_made_beside_the_loop_or_in_it(tmp_path):
    for name in (True, False):
        fit(toy_algorithm(), toy_config(checkpoint={"every_steps": 2, "asynchronous": name}), tmp_path / str(name))
    for file in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
        one, other = (load_file(tmp_path / name / "checkpoints" / "step-00000008" / file) for name in ("True", "False"))
        assert all(torch.equal(one[key], other[key]) for key in one)
