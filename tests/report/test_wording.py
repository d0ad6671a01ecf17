"""Figures with their units, by hand."""

import pytest

from luyen.evaluation import before_after
from luyen.report import answers, wording


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (12345, "12,345"),
        (999_999, "999,999"),
        (3_096_576, "3.1 million"),
        (999_600_000, "1,000 million"),
        (2e12, "2 trillion"),
    ],
)
def test_whole(value: float | None, shown: str) -> None:
    assert wording.whole(value).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.01, "under 0.1 s"),
        (0.42, "0.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (292, "4 min 52 s"),
        (3780, "1 h 03 min"),
        (7199, "2 h 00 min"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert wording.duration(seconds).replace("\u00a0", " ") == shown


def test_size_share_energy() -> None:
    assert wording.size(1_234_567).replace("\u00a0", " ") == "1.23 MB"
    assert wording.size(999).replace("\u00a0", " ") == "999 B"
    assert wording.share(0.643, 0).replace("\u00a0", " ") == "64 %"
    assert wording.energy(7200).replace("\u00a0", " ") == "2 Wh"


def test_moment_takes_both_forms_of_time_and_refuses_others() -> None:
    assert wording.moment("2026-11-21T11:02:03+02:00") == "2026-11-21 09:02 UTC"
    assert wording.moment(0) == "1970-01-01 00:00 UTC"
    assert wording.moment("yesterday") == wording.moment(None) == wording.moment(1e300) == ""


def test_clip_says_how_much_was_cut() -> None:
    assert wording.clip("a" * 10, 10) == "a" * 10
    assert wording.clip("a" * 1510, 10) == "a" * 10 + " … (cut: 1,500 more characters)"


@pytest.mark.parametrize(
    ("expected", "measured", "said"),
    [
        (100.0, 71.0, "29\u00a0% less than the X expected"),
        (100.0, 130.0, "30\u00a0% more than the X expected"),
        (100.0, 240.0, "2.4 times the X expected"),
        (100.0, 104.0, "as expected (X)"),
        (100.0, None, "X expected"),
        (None, 100.0, ""),
    ],
)
def test_a_prediction_stands_beside_the_measurement(expected: float | None, measured: float | None, said: str) -> None:
    assert wording.foretold(expected, measured, "X") == said


def test_the_name_of_a_model_with_pages_is_the_evaluations() -> None:
    """The report loads no torch, so it has the word twice."""
    assert answers.WITH_PAGES == before_after.WITH_PAGES
