"""Pairs written while people judge: the same ones after a stop, from whom they are said to be, and never far ahead."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))  # the toy models of the command's own tests

from toy_models import write_model  # noqa: E402

from luyen.core.errors import ModelError  # noqa: E402
from luyen.core.records import Message  # noqa: E402
from luyen.inference.config import SamplingConfig  # noqa: E402
from luyen.serving.label_store import Store  # noqa: E402
from luyen.serving.label_writer import PairMaker, open_writers  # noqa: E402
from serving.label_toys import judgement  # noqa: E402

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=6)
PROMPTS = [(Message("user", f"What does number {number} do?"),) for number in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("models") / "toy"))


def make(
    store: Store, model: str, temperatures: tuple[float, ...] = (), prompts: list[tuple[Message, ...]] = PROMPTS, ahead: int = 99
) -> PairMaker:  # fmt: skip
    writers = open_writers({"toy": model}, temperatures, SAMPLING, torch.device("cpu"))
    return PairMaker(store, prompts, writers, ahead)


def test_pairs_say_who_wrote_them_and_are_the_same_after_a_stop(tmp_path: Path, model: str) -> None:
    with Store.open(tmp_path / "whole") as store:
        make(store, model, (0.7, 1.0)).run()
        whole = list(store.pairs.values())
    assert len(whole) == len(PROMPTS)
    assert {pair.prompt for pair in whole} == set(PROMPTS) and [pair.prompt for pair in whole] != PROMPTS
    for pair in whole:
        assert {answer.writer["sampling"]["temperature"] for answer in pair.answers} == {0.7, 1.0}
        assert all(answer.writer["model"] == "toy" and len(answer.writer["weights"]) == 64 for answer in pair.answers)
    with Store.open(tmp_path / "parts") as store:
        make(store, model, (0.7, 1.0), prompts=PROMPTS[:2]).run()
        make(store, model, (0.7, 1.0)).run()
        make(store, model, (0.7, 1.0)).run()
        assert sorted(pair.id for pair in store.pairs.values()) == sorted(pair.id for pair in whole)


def test_one_writer_alone_answers_twice(tmp_path: Path, model: str) -> None:
    with Store.open(tmp_path / "labels") as store:
        make(store, model).run()
        assert all(pair.answers[0].turns != pair.answers[1].turns for pair in store.pairs.values())
        assert len(store.pairs) == len(PROMPTS)


def test_answers_that_are_always_equal_and_prompts_without_room_are_left_out_and_told(tmp_path: Path, model: str) -> None:
    long = (Message("user", "word " * 400),)
    with Store.open(tmp_path / "labels") as store:
        maker = make(store, model, (0.0, 1e-6), [PROMPTS[0], long])
        maker.run()
        assert not store.pairs
        assert "two equal answers" in " ".join(maker.left_out) and "leaves no room" in " ".join(maker.left_out)


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_stays_as_far_ahead_as_was_asked_and_ends_when_told(tmp_path: Path, model: str) -> None:
    with Store.open(tmp_path / "labels") as store:
        maker = make(store, model, ahead=2)
        maker.start()
        until(lambda: len(store.pairs) == 2)
        time.sleep(0.2)
        assert len(store.pairs) == 2 and not maker.finished
        store.judge(judgement(next(iter(store.pairs.values()))))
        until(lambda: len(store.pairs) == 3)
        maker.stop()
        assert maker.finished and not maker.problem and len(store.pairs) <= 3


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare", template=False)
    with pytest.raises(ModelError, match="no chat template"):
        open_writers({"bare": str(bare)}, [], SAMPLING, torch.device("cpu"))


def test_what_breaks_in_the_background_is_told(tmp_path: Path, model: str) -> None:
    with Store.open(tmp_path / "labels") as store:
        maker = make(store, model)

        def full(*_: object) -> int:
            raise ModelError("the disk is full")

        store.add = full  # type: ignore[method-assign, assignment]
        maker.start()
        until(lambda: maker.finished)
        assert "the disk is full" in maker.problem
        maker.stop()
