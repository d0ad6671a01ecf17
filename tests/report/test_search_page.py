"""The page of a search stands alone, says how many trials are behind it, and takes hostile text as text."""

from __future__ import annotations

from luyen.report.search import render

TRIALS = [
    {
        "number": 0,
        "params": {"base.x_rate": 0.001, "base.name": "<b>a"},
        "own": False,
        "state": "complete",
        "value": 2.0,
        "reason": "",
        "values": {},
    },
    {
        "number": 1,
        "params": {"base.x_rate": 0.01, "base.name": "b"},
        "own": False,
        "state": "complete",
        "value": 1.5,
        "reason": "",
        "values": {},
    },
    {
        "number": 2,
        "params": {"base.x_rate": 0.1, "base.name": "b"},
        "own": False,
        "state": "failed",
        "value": None,
        "reason": "not finite",
        "values": {},
    },
]
FOUND = {
    "recipe": "toy", "remarks": ["3 trials stand behind this: 2 complete, 0 pruned, 1 failed."],
    "metric": "loss", "direction": "minimize", "stage": "base", "trials": TRIALS, "importance": None,
    "space": [{"key": "base.x_rate", "low": 0.001, "high": 0.1, "whole": False, "log": True},
              {"key": "base.name", "choices": ["<b>a", "b"]}],
    "best": {"number": 1, "value": 1.5, "params": TRIALS[1]["params"], "settings": "base.x_rate=0.01 base.name=b"},
}  # fmt: skip


def test_the_page_stands_alone_and_is_honest() -> None:
    page = render(FOUND)
    assert "3 trials stand behind this: 2 complete, 0 pruned, 1 failed." in page and "in trial 2 of 3" in page
    assert "base.x_rate=0.01 base.name=b" in page and "not finite" in page
    assert page.count("<svg") == 2
    assert "<b>a" not in page and "&lt;b&gt;a" in page
    assert "<script" not in page and "src=" not in page
    assert "Too few complete trials" in page and page.count("var(--series-1)") > 0
    assert "50 %" in render({**FOUND, "importance": {"base.x_rate": 0.5, "base.name": 0.5}})


def test_a_search_without_a_complete_trial_has_a_page() -> None:
    assert "No trial is complete" in render({**FOUND, "trials": TRIALS[2:], "best": None})


def test_pruned_trials_are_drawn_without_a_figure() -> None:
    pruned = {**TRIALS[0], "number": 3, "state": "pruned", "value": None, "reason": "after step 2 of 4"}
    page = render({**FOUND, "trials": [*TRIALS, pruned]})
    assert "1 dotted line without a figure was pruned" in page and "after step 2 of 4" in page


def test_one_diverged_trial_does_not_flatten_the_curve() -> None:
    more = [{**TRIALS[0], "number": number, "value": value} for number, value in ((3, 2.1), (4, 1.9), (5, 90.0))]
    page = render({**FOUND, "trials": [*TRIALS, *more]})
    assert "From 2.0000 in trial 1 to 1.5000. 1 trial far worse than the median is not drawn." in page
    assert ">90.0000<" in page and ">80<" not in page, "in the table, not on the curve's axis"


def test_numbers_agree_with_their_words() -> None:
    pruned = [{**TRIALS[0], "number": number, "state": "pruned", "value": None} for number in (6, 7)]
    far = [{**TRIALS[0], "number": number, "value": value} for number, value in ((3, 2.1), (4, 1.9), (8, 1.8), (5, 90.0), (9, 80.0))]
    page = render({**FOUND, "trials": [*TRIALS, *far, *pruned]})
    assert "2 trials far worse than the median are not drawn." in page and "2 dotted lines without a figure were pruned." in page
