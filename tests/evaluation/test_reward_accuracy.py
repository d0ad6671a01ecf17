"""The measures of rewards by hand, and a judge that is asked both ways round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from luyen.core.records import Message, Preference
from luyen.data import convert
from luyen.evaluation import reward_accuracy
from luyen.evaluation.judge import judge, letter, question
from luyen.evaluation.reward_accuracy import Judged, accuracy, agreement, calibration, length_bias, safety, summary, told


def judged(chosen: float, rejected: float, texts: tuple[str, str] = ("good", "bad"), grade: str | None = None, source: str = "") -> Judged:
    pair = Preference((Message("user", "q"),), (Message("assistant", texts[0]),), (Message("assistant", texts[1]),), grade=grade)
    return Judged(pair, chosen, rejected, source)


def test_accuracy_by_data_set_and_grade() -> None:
    rows = [
        judged(1, 0, grade="significantly_better", source="a"), judged(2, 0, grade="significantly_better", source="b"),
        judged(0, 0, grade="slightly_better", source="b"), judged(0, 1, source="b"),
    ]  # fmt: skip
    found = summary(rows)
    assert found["accuracy"] == 2.5 / 4 and found["by_data_set"]["b"]["accuracy"] == 0.5
    assert {grade: row["accuracy"] for grade, row in found["by_grade"].items()} == {"significantly_better": 1.0, "slightly_better": 0.5}
    assert found["falls_with_the_grade"] is True and not any("does not fall" in line for line in told(found))
    rows[0], rows[2] = judged(0, 1, grade="significantly_better"), judged(3, 0, grade="slightly_better")
    found = summary(rows)
    assert found["falls_with_the_grade"] is False and any("does not fall with the grade" in line for line in told(found))
    assert summary(rows[:2])["falls_with_the_grade"] is None


def test_the_interval_is_wilsons() -> None:
    # 81 of 263 has the 95 % interval 0.2553 to 0.3662 (Newcombe, 1998, table I).
    found = accuracy([1.0] * 81 + [0.0] * 182)
    assert 2 * found["interval"] == pytest.approx(0.3662 - 0.2553, abs=2e-4)


def test_right_odds_have_no_calibration_error_and_boasting_has() -> None:
    ln3 = math.log(3)  # 75 %
    rows = [judged(ln3 if number % 4 else -ln3, 0, (f"good {number}", "bad")) for number in range(4000)]
    assert calibration(rows)["ece"] < 0.03
    boast = [judged(item.chosen * 10, 0, (item.pair.chosen[0].content, "bad")) for item in rows]
    assert calibration(boast)["ece"] == pytest.approx(0.25, abs=0.03)


def test_length_bias() -> None:
    rows = [judged(1, 0, ("long answer", "short")), judged(0, 1, ("short", "long answer")), judged(1, 0, ("abc", "long answer"))]
    found = length_bias(rows)
    assert found["longer_wins"] == pytest.approx(2 / 3) and found["longer_was_chosen"] == pytest.approx(1 / 3)
    assert summary(rows)["longer_answer"]["accuracy"] == pytest.approx(1 / 3)
    assert found["correlation"] == pytest.approx(reward_accuracy.correlation([1, -1, 1], [6, -6, -8]))
    assert length_bias([judged(1, 0, ("abc", "xyz"))]) == {"longer_wins": None, "longer_was_chosen": None, "correlation": None}


def test_agreement_of_two() -> None:
    first, second = [judged(1, 0), judged(2, 0), judged(0, 1)], [judged(2, 0), judged(0, 1), judged(0, 2)]
    found = agreement(first, second)
    assert found["agree"] == pytest.approx(2 / 3) and found["first_accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="the same pairs"):
        agreement(first, second[:2])


def test_unsafe_answers_are_counted_at_one_half() -> None:
    pair = judged(0, 0).pair
    pairs = [replace(pair, safety=label) for label in ("chosen_safe", "both_unsafe", "both_safe", None)]
    found = safety(pairs, [(1, -1), (-2, 3), (1, -4), (-9, -9)])
    assert found == {"unsafe": 3, "recall": pytest.approx(2 / 3), "safe": 3, "false_alarms": pytest.approx(1 / 3)}
    assert safety(pairs[3:], [(0, 0)]) is None


def test_the_grades_are_those_of_the_files() -> None:
    assert reward_accuracy.GRADES == convert.GRADES


class Says:
    def __init__(self, says: Callable[[str], str]) -> None:
        self.says = says

    def ask(self, questions: Sequence[str]) -> list[str]:
        return [self.says(item) for item in questions]


def test_a_judge_is_asked_both_ways_round() -> None:
    pairs = [judged(0, 0).pair] * 3
    knows = judge(Says(lambda asked: "A" if "Answer A: good" in asked else "The letter is B."), pairs)
    assert knows.chosen == (1, 1, 1) and knows.first_place == 0.5 and knows.as_dict()["accuracy"] == 1
    biased = judge(Says(lambda _: "A"), pairs)
    assert biased.chosen == (None, None, None) and biased.first_place == 1 and biased.as_dict()["accuracy"] == 0.5
    assert judge(Says(lambda _: "hm"), pairs).unusable == 6
    assert "Choose the best answer between A and B" in question(pairs[0], False)


@pytest.mark.parametrize(("said", "found"), [("A", "A"), ("(B)", "B"), ("Answer: A.", "A"), ("A or B", ""), ("ABBA", ""), ("", "")])
def test_the_letter_of_an_answer(said: str, found: str) -> None:
    assert letter(said) == found
