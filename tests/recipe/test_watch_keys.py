"""Which settings of `train.watch` make a stage out of date, and that what holds times is no part of its result."""

import pytest

from luyen.core.config import load, merge
from luyen.recipe.attempts import seal
from luyen.recipe.configs import PretrainConfig
from luyen.recipe.inputs import neutral_config

PLAIN = {"data": "d", "tokenizer": "t", "train": {"steps": 20}}


def deciding(watch):
    return neutral_config(load(PretrainConfig, merge(PLAIN, {"train": {"watch": watch}})), {})


@pytest.mark.parametrize("watch", [{"trackers": ["trackio"], "project": "p"}, {"profile": "2-3"}, {"synchronise": True}, {"carbon": "400"}])
def test_looking_on_decides_nothing(watch):
    assert deciding(watch) == deciding({})


@pytest.mark.parametrize("watch", [{"stop_tokens": 5}, {"stop_hours": 1}, {"patience": 2}, {"window": 0}])
def test_an_end_and_what_is_logged_do(watch):
    assert deciding(watch) != deciding({})


def test_files_that_hold_times_are_not_sealed(tmp_path):
    for name in ("metrics.jsonl", "timings.jsonl", "tensorboard/events", "profile/steps", "trackers/wandb/run"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(seal(tmp_path, "model", {})["files"]) == ["metrics.jsonl"]
