"""Rejection sampling: planted rewards rise, the best is the best, what earlier rounds found stays, and nothing stops it for good."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luyen.algorithms import rejection_sampling
from luyen.algorithms.rejection_config import DrawConfig
from luyen.algorithms.rejection_sampling import Best, Drawn, Sampler, choose, pairs
from luyen.algorithms.rollout_files import Prompt
from luyen.algorithms.sft import SFT
from luyen.core.config import load
from luyen.core.errors import DataError
from luyen.core.records import Message
from luyen.data.loader import PackedStream
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.engine.trainer import fit
from luyen.models.transformer import Transformer
from luyen.tasks.reward import Written
from tests.algorithms.policy_toys import STOP, Letters, Score, bandit, decoder, ends_with_nine, prompts, train_config


def sampler(folder: Path, model: Transformer, reward: Any, samples: int = 16, seed: int = 0, **config: Any) -> Sampler:
    draw = load(DrawConfig, {"max_new_tokens": 3, "part": 3, **config})
    return Sampler(model.eval(), Letters(), reward, samples, draw, folder, seed)


def sample(prompt: Prompt, best: Best) -> Sample:
    answer = [*map(int, best.answer.split()), STOP]
    tokens = np.array([*prompt.ids, *answer[:-1]], np.int32)
    return Sample(prompt.id, tokens, np.array([NOT_TRAINED] * (len(prompt.ids) - 1) + answer, np.int32))


def mean(rows: list[tuple[Drawn, ...]]) -> float:
    return sum(item.reward for row in rows for item in row) / sum(map(len, rows))


@pytest.mark.parametrize("reward", [bandit, ends_with_nine])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_planted_rewards_rise_round_by_round(reward: Callable[..., float], seed: int, tmp_path: Path) -> None:
    """Few of the first answers are both good and ended, so many are drawn: what no round has seen no round can learn."""
    model, asked = decoder(seed), prompts(16)
    by_turns = {prompt.messages: prompt for prompt in asked}
    earlier: dict[str, list[Best]] = {}
    means = []
    for number in range(3):
        _, _, drawn = sampler(tmp_path / f"draws-{number}", model, Score(reward), 96, seed + number).draw(asked)
        means.append(mean(drawn))
        earlier[f"round-{number}"] = best = choose(asked, drawn, earlier, Score(reward))
        samples = [sample(by_turns[item.messages], item) for item in best]
        stream = PackedStream(samples, capacity=64, rows=2, seed=seed)
        fit(SFT(model.train(), stream), train_config(30, 3e-3), tmp_path / f"round-{number}", seed=seed)
    _, _, drawn = sampler(tmp_path / "last", model, Score(reward), 32, seed + 9).draw(asked)
    assert means[0] < 0.2 and mean(drawn) > 0.9, [*means, mean(drawn)]


def test_the_temperature_with_the_best_best_is_taken(tmp_path: Path) -> None:
    class Different:
        """Pays for words that others seldom say: more at higher temperatures."""

        def score(self, written: Any) -> list[float]:
            return [float(len(set(item.answer.split()))) for item in written]

    model = decoder()
    with torch.no_grad():
        model.head_weight.mul_(12)  # sharp, so that the temperature matters
    own = sampler(tmp_path, model, Different(), 4, temperatures=[0.1, 2.0, 0.5], search=5)
    chosen, tried, drawn = own.draw(prompts(8))
    assert chosen == max(tried, key=lambda value: tried[value]) == 2.0 and len(tried) == 3 and len(drawn) == 8
    alone = sampler(tmp_path / "alone", model, Different(), 4, temperatures=[2.0]).draw(prompts(8))
    assert alone[1] == {} and alone[2] == drawn, "the answers of the search are used, and are those that are drawn anyway"


def test_answers_to_a_prompt_do_not_depend_on_the_others(tmp_path: Path) -> None:
    all_of_them = sampler(tmp_path / "a", decoder(), Score(bandit)).draw(prompts(8))[2]
    one = sampler(tmp_path / "b", decoder(), Score(bandit)).draw(prompts(8)[5:6])[2]
    assert one[0] == all_of_them[5] and len({item.text for item in one[0]}) > 4


class Cut(Exception):
    """What a kill is to a test in one process."""


@pytest.mark.parametrize("place", ["generate", "checked", "replace_jsonl"])
def test_what_was_drawn_is_read_back(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"temperatures": [1.0, 1.5], "search": 4, "part": 2}
    whole = sampler(tmp_path / "whole", decoder(), Score(bandit), 4, **config).draw(prompts(8))
    plain, asked = getattr(rejection_sampling, place), iter(range(100))

    def cut(*given: Any, **named: Any) -> Any:
        if next(asked) == 4:
            raise Cut
        return plain(*given, **named)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(rejection_sampling, place, cut)
        sampler(tmp_path / "cut", decoder(), Score(bandit), 4, **config).draw(prompts(8))
    again = Score(bandit)
    assert sampler(tmp_path / "cut", decoder(), again, 4, **config).draw(prompts(8)) == whole
    assert again.asked == 2, "of six parts four were there"
    for name in ("drawn-000000.jsonl", "search-0-000001.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_of_other_settings_or_with_damage_are_drawn_again(tmp_path: Path) -> None:
    first = sampler(tmp_path, decoder(), Score(bandit), 4).draw(prompts(4))
    other = Score(ends_with_nine)
    assert sampler(tmp_path, decoder(), other, 4, seed=1).draw(prompts(4)) != first and other.asked == 2
    path = tmp_path / "drawn-000000.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = Score(bandit)
    sampler(tmp_path, decoder(), again, 4, seed=1).draw(prompts(4))
    assert again.asked == 1


def test_a_reward_that_is_no_number_names_the_prompt_and_leaves_no_part(tmp_path: Path) -> None:
    bad = Score(lambda ids, stopped: math.nan)
    with pytest.raises(DataError, match="the reward of an answer to p0 is not a finite number"):
        sampler(tmp_path, decoder(), bad).draw(prompts(4))
    assert not list(tmp_path.iterdir())


def turns(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


ASKED = [Prompt("a", turns("A?"), (2,)), Prompt("b", turns("B?"), (3,)), Prompt("c", turns("C?"), (4,))]


class Length:
    """The reward of this round."""

    def score(self, written: Any) -> list[float]:
        return [float(len(item.answer)) for item in written]


def test_the_best_of_this_round_and_of_earlier_ones() -> None:
    drawn = [
        (Drawn("xx", True, 2.0), Drawn("yy", True, 2.0), Drawn("long", False, 4.0)),  # the longest did not end
        (Drawn("z", True, 1.0), Drawn("", True, 9.0)),  # nothing is no answer
        (Drawn("cut", False, 3.0),),
    ]
    best = choose(ASKED, drawn, {}, Length())
    assert [(item.id, item.answer, item.source) for item in best] == [("a", "xx", ""), ("b", "z", "")]
    old = [Best("old-b", turns("B?"), "zzz", -5.0), Best("old-a", turns("A?"), "qq", 99.0), Best("old-d", turns("D?"), "d1", 1.0)]
    new = [Best("new-d", turns("D?"), "d2", 0.5)]
    best = choose(ASKED, drawn, {"one": old, "two": new}, Length())
    assert [(item.id, item.answer, item.reward, item.source) for item in best] == [
        ("a", "xx", 2.0, ""),  # an earlier one that is worth as much now does not win, whatever it was worth then
        ("b", "zzz", 3.0, "one"),
        ("new-d", "d2", 0.5, "two"),
    ]
    kept = [Best("b", turns("B?"), "zzz", 3.0, "zero")]
    assert choose(ASKED, drawn, {"one": kept}, Length())[1].source == "zero", "where it was drawn first"


def test_pairs_are_the_best_and_the_worst_where_they_differ() -> None:
    drawn = [
        (Drawn("m", True, 1.0), Drawn("w", True, 0.0), Drawn("b", True, 2.0), Drawn("u", False, -1.0)),
        (Drawn("s", True, 1.0), Drawn("t", True, 1.0)),
        (Drawn("one", True, 1.0),),
    ]
    (pair,) = pairs(ASKED, drawn)
    assert (pair.prompt, pair.chosen[0].content, pair.rejected[0].content) == (turns("A?"), "b", "w")


def test_earlier_answers_are_scored_with_what_the_prompt_knows() -> None:
    seen: list[Written] = []

    class Seen(Length):
        def score(self, written: Any) -> list[float]:
            seen.extend(written)
            return super().score(written)

    choose(ASKED, [()] * 3, {"one": [Best("x", turns("C?"), "old", 0.0)]}, Seen())
    assert [(item.id, item.prompt, item.answer) for item in seen] == [("c", turns("C?"), "old")]
