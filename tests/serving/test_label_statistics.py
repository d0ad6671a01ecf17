"""Agreement and position bias against published and hand-derived numbers."""

from __future__ import annotations

import pytest

from luyen.serving.label_statistics import cohen, krippendorff, statistics, wilson
from luyen.serving.label_text import lines
from serving.label_toys import judgement, pair

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units, gaps.
OBSERVERS = [
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
]
UNITS = [[value for value in unit if value is not None] for unit in zip(*OBSERVERS, strict=True)]


def test_krippendorffs_own_example() -> None:
    assert krippendorff(UNITS) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(UNITS, ordinal=True) == pytest.approx(0.815, abs=5e-4)


def test_alpha_by_hand_and_where_it_is_not_defined() -> None:
    # Two people, four units: 0 0 | 0 1 | 1 1 | 1 1. D_o = 2/8; three 0 and five 1: D_e = 2*3*5/(8*7).
    assert krippendorff([[0, 0], [0, 1], [1, 1], [1, 1]]) == pytest.approx(1 - (2 / 8) / (30 / 56))
    assert krippendorff([[1, 1], [1, 1]]) is None
    assert krippendorff([[1], []]) is None
    assert krippendorff([[0, 0], [1, 1]]) == 1


def test_kappa_by_hand() -> None:
    # 20 both yes, 5 and 10 apart, 15 both no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    table = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohen(table) == pytest.approx(0.4)
    assert cohen([]) is None and cohen([(1, 1)]) is None


def test_wilsons_interval() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_person_who_always_takes_the_left_one_is_seen() -> None:
    clicks = [judgement(pair(n), "lefty", preferred=n % 2, left=n % 2) for n in range(40)]
    clicks += [judgement(pair(n), "fair", preferred=0, left=n % 2) for n in range(40)]
    clicks += [judgement(pair(50), "fair", preferred=None), judgement(pair(51), "fair", left=None)]
    figures = statistics(clicks)
    assert (figures["judgements"], figures["skipped"], figures["pairs"]) == (81, 1, 41)
    assert figures["annotators"]["lefty"]["share"] == 1 and figures["annotators"]["lefty"]["low"] > 0.9
    assert figures["annotators"]["fair"]["share"] == 0.5 and figures["annotators"]["fair"]["skipped"] == 1
    assert (figures["left"]["left_won"], figures["left"]["placed"]) == (60, 80)
    assert figures["left"]["low"] > 0.5, "the bias shows in the whole too"
    agreement = figures["agreement"]
    assert agreement["shared_pairs"] == 40
    assert agreement["kappa"]["fair and lefty"]["agreed"] == 0.5
    assert agreement["kappa"]["fair and lefty"]["kappa"] == pytest.approx(0.0)
    assert "left won 100.0 % (91.2 to 100.0)" in "\n".join(lines(figures))


def test_agreement_is_of_the_same_texts_and_grades_weigh() -> None:
    near = [judgement(pair(n), "an", preferred=n % 2, grade="better") for n in range(10)]
    near += [judgement(pair(n), "binh", preferred=n % 2, grade="slightly_better") for n in range(10)]
    figures = statistics(near)["agreement"]
    assert figures["alpha_better"] == 1 and 0.5 < figures["alpha_grades"] < 1
    edited = [judgement(pair(1), "an"), judgement(pair(1), "binh", edits=("else", None))]
    assert statistics(edited)["agreement"]["shared_pairs"] == 0


def test_who_writes_the_better_answers() -> None:
    clicks = []
    for n in range(6):
        about = pair(n)
        one = 0 if about.answers[0].writer["model"] == "one" else 1
        clicks.append(judgement(about, preferred=one if n else 1 - one))
    found = statistics(clicks)["writers"]
    assert (found["one at 0.5"]["won"], found["two at 0.5"]["won"], found["one at 0.5"]["compared"]) == (5, 1, 6)


def test_nothing_judged_is_said_without_a_division_by_zero() -> None:
    assert list(lines(statistics([])))[0].startswith("0 judgements of 0 pairs")
