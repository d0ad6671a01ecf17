"""The next step's batches are made while the device works, and nothing else changes by it."""

import contextlib
import itertools
import json

import pytest
import torch
from training_toys import toy_algorithm, toy_config

from luyen.algorithms.pretrain import Pretrain
from luyen.algorithms.sft import SFT
from luyen.core.errors import DataError
from luyen.engine import checkpoint, run
from luyen.engine.ahead import Feed
from luyen.engine.algorithm import Hooks
from luyen.engine.run import Run
from luyen.engine.trainer import fit


class Waiting(Pretrain):
    """Makes a batch when its step begins."""

    batches_ahead = False


def waiting():
    """The toy algorithm with its stream, one batch at a time."""
    plain = toy_algorithm()
    return Waiting(plain.model, plain.stream)


def counted(algorithm, told):
    """The algorithm, whose stream writes `pull` down for every batch, and whose loss `loss`."""
    batches, loss = algorithm.batches, algorithm.loss
    algorithm.batches = lambda state: (told.append("pull") or item for item in batches(state))
    algorithm.loss = lambda batch: told.append("loss") or loss(batch)
    return algorithm


def order(monkeypatch, algorithm, folder, **config):
    """What happens in three steps of two micro-batches."""
    told = []
    plain = run.to_host
    monkeypatch.setattr(run, "to_host", lambda figures: told.append("wait") or plain(figures))
    fit(counted(algorithm, told), toy_config(**{"steps": 3, "accumulation": 2, **config}), folder)
    return "".join({"pull": "p", "loss": "l", "wait": "w"}[name] for name in told)


def test_batches_are_made_between_the_launch_of_a_step_and_the_wait_for_it(monkeypatch, tmp_path):
    assert order(monkeypatch, toy_algorithm(), tmp_path) == "pp" + "llppw" + "llppw" + "llw"  # and none behind the last step


def test_no_batch_is_made_ahead_of_an_update_that_it_depends_on(monkeypatch, tmp_path):
    assert order(monkeypatch, waiting(), tmp_path) == "ppllw" * 3


def test_a_run_that_tokens_end_makes_none_too_much(monkeypatch, tmp_path):
    assert order(monkeypatch, toy_algorithm(), tmp_path, steps=9, watch={"stop_tokens": 150}) == "ppllppwllw"


def test_which_algorithms_batches_are_of_the_data_alone():
    assert Pretrain.batches_ahead and SFT.batches_ahead


@pytest.mark.parametrize("make", [toy_algorithm, waiting])
def test_a_checkpoint_holds_the_place_behind_the_last_batch_that_was_trained_on(tmp_path, make):
    algorithm = make()
    states = [state for _, state in itertools.islice(algorithm.batches(None), 8)]
    fit(algorithm, toy_config(steps=4, accumulation=2, checkpoint={"every_steps": 1, "keep_last": 4}), tmp_path)
    held = [json.loads(path.read_text())["done"]["stream"] for path in sorted((tmp_path / "checkpoints").glob("*/state.json"))]
    assert held == states[1::2]


def test_ahead_or_not_ends_in_the_same_bits(tmp_path):
    weights = []
    for name, make in (("ahead", toy_algorithm), ("waiting", waiting)):
        algorithm = make()
        fit(algorithm, toy_config(evaluate_every=3), tmp_path / name, hooks=Hooks(evaluate=lambda: {"x": torch.rand(()).item()}))
        weights.append(algorithm.model.state_dict())
    assert (tmp_path / "ahead" / "metrics.jsonl").read_bytes() == (tmp_path / "waiting" / "metrics.jsonl").read_bytes()
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


@pytest.mark.parametrize("make", [toy_algorithm, waiting])
def test_an_error_in_the_stream_belongs_to_the_step_that_needs_the_batch(tmp_path, make):
    algorithm = make()
    plain = algorithm.batches

    def batches(state):
        yield from itertools.islice(plain(state), 5)
        raise DataError("row 6 is damaged")

    algorithm.batches = batches
    with pytest.raises(DataError, match="row 6"):
        fit(algorithm, toy_config(accumulation=2, checkpoint={"every_steps": 1}), tmp_path)
    assert checkpoint.newest_valid(tmp_path / "checkpoints").state["step"] == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    fit(make(), toy_config(accumulation=2, checkpoint={"every_steps": 1}), tmp_path)
    fit(make(), toy_config(accumulation=2), tmp_path / "whole")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_the_time_for_the_next_batches_is_that_of_data(tmp_path):
    algorithm = toy_algorithm()
    with contextlib.closing(Run(algorithm, toy_config(), tmp_path, 0, Hooks())) as training:
        parts = []
        plain = training.watch.clock.part
        training.watch.clock.part = lambda name: parts.append(name) or plain(name)
        training.update(algorithm.batches(None))
    assert parts == ["data", "data", "forward", "backward", "communication", "update", "data", "wait", "update", "update"]


def stream(*batches):
    """(batch, state) pairs of the toy algorithm's first batches, each with its number as the state."""
    first = itertools.islice(toy_algorithm().batches(None), len(batches))
    return iter([(batch, {"number": number}) for (batch, _), number in zip(first, batches, strict=True)])


def test_a_feed_gives_the_stream_in_order_with_its_share_on_the_device():
    feed = Feed(2, lambda batches: [batch.share(0, 2) for batch in batches], torch.device("meta"), ahead=True)
    source = stream(1, 2, 3, 4, 5)
    first = feed.next(source)
    assert first.state == {"number": 2} and first.tokens == sum(batch.tokens_T.numel() for batch in first.batches)
    feed.prepare(source)
    second = feed.next(source)
    assert second.state == {"number": 4} and second.targets == sum(batch.num_targets for batch in second.batches)
    assert {batch.tokens_T.device.type for batch in second.batches} == {"cpu"}
    assert {tensor.device.type for batch in second.own for tensor in (batch.tokens_T, batch.trained_positions_K)} == {"meta"}
    assert [batch.lengths for batch in second.own] == [batch.share(0, 2).lengths for batch in second.batches]
    feed.prepare(source)  # there is one left of two
    with pytest.raises(StopIteration):
        feed.next(source)


def test_a_feed_gives_nothing_of_another_stream():
    feed = Feed(1, lambda batches: batches, torch.device("cpu"), ahead=True)
    feed.prepare(stream(1, 2))
    assert feed.next(stream(7)).state == {"number": 7}
