"""Judgements out and in again: prompt/chosen/rejected, HH transcripts, Label Studio; nothing lost, nothing invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luyen.core.errors import DataError
from luyen.core.files import write_jsonl
from luyen.data.formats import read
from luyen.serving.label_formats import hh_rows, label_studio_tasks, preference_rows, read_file
from luyen.serving.label_records import Judgement
from serving.label_toys import HOSTILE, judgement, pair

NOW = "2027-01-01T00:00:00.000Z"
CLICKS = [
    judgement(pair(1), "an", 0, 1, grade="significantly_better", domain="safety", safety="chosen_safe", categories=("wrong",), seconds=3.0),
    judgement(pair(1), "Bình", 1, 1, grade="negligibly_better"),
    judgement(pair(2, good=HOSTILE), "an", 1, None, safety="both_unsafe", domain="safety"),
    judgement(pair(3), "an", 0, 0, edits=("rewritten", None)),
]


def said(clicks: list[Judgement]) -> list[Any]:
    """All that a form must carry, in an order of its own."""
    found = []
    for click in (click.settled() for click in clicks):
        texts = [click.pair.answers[number].turns for number in (click.preferred, 1 - click.preferred)]
        left = None if click.left is None else click.left == click.preferred
        words = (click.annotator, click.time, click.grade, click.domain, click.safety, click.categories)
        found.append((click.pair.prompt, *texts, left, *words))
    return sorted(found, key=repr)


def test_preference_rows_and_back(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", preference_rows([*CLICKS, judgement(pair(9), preferred=None)]))
    records = read(tmp_path / "p.jsonl").records
    assert [record.grade for record in records] == ["significantly_better", "negligibly_better", "better", "better"]
    assert records[3].chosen[0].content == "rewritten" and records[0].safety == "chosen_safe"
    back = read_file(tmp_path / "p.jsonl", NOW)
    assert said(back.judgements) == said(CLICKS) and not back.left_out
    assert [click.pair.answers for click in back.judgements[:2]] == [click.pair.answers for click in CLICKS[:2]], "writers too"


def test_hh_transcripts_and_back(tmp_path: Path) -> None:
    rows = list(hh_rows(CLICKS))
    assert rows[0]["chosen"].startswith("\n\nHuman: First 1?\n\nAssistant: Yes.\n\nHuman: And question 1?\n\nAssistant: ")
    write_jsonl(tmp_path / "hh.jsonl", rows)
    assert read(tmp_path / "hh.jsonl").format.startswith("Anthropic HH")
    assert said(read_file(tmp_path / "hh.jsonl", NOW).judgements) == said(CLICKS)


@pytest.mark.parametrize("about", [pair(1, system=True), pair(1, good="Look:\n\nHuman: me"), pair(1, good=" spaced")])
def test_what_no_transcript_can_say_is_left_out_with_the_reason(about: Any) -> None:
    (reason,) = hh_rows([judgement(about)])
    assert isinstance(reason, str) and "Human:" in reason


def test_label_studio_and_back(tmp_path: Path) -> None:
    skipped = judgement(pair(1), "chi", preferred=None)
    tasks = label_studio_tasks([*CLICKS, skipped])
    assert len(tasks) == 3 and len(tasks[0]["annotations"]) == 3
    result = tasks[0]["annotations"][0]["result"]
    assert result[0] | {"id": ""} == {
        "id": "", "from_name": "better", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"},
    }  # fmt: skip
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    back = read_file(tmp_path / "tasks.json", NOW)
    assert said([click for click in back.judgements if click.preferred is not None]) == said(CLICKS)
    assert [click.annotator for click in back.judgements if click.preferred is None] == ["chi"]


def test_label_studios_own_export(tmp_path: Path) -> None:
    value = {"type": "pairwise", "from_name": "pw", "to_name": "text1,text2", "value": {"selected": "right"}}
    tasks = [
        {"id": 1, "data": {"prompt": "What?", "text1": "this", "text2": "that"}, "predictions": [],
         "annotations": [{"id": 5, "completed_by": 7, "created_at": "2021-03-09T22:16:08.728353Z", "result": [value], "lead_time": 4.2}]},
        {"id": 2, "data": {"prompt": "Who?", "answer1": "me", "answer2": "you"}, "annotations": []},
        {"id": 3, "data": {"image": "x"}, "annotations": []},
    ]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    found = read_file(tmp_path / "export.json", NOW)
    (click,) = found.judgements
    assert click.turns(click.preferred)[0].content == "that" and click.annotator == "7" and click.grade is None
    assert click.left == 1 - click.preferred, "the left one is the first"
    assert [each.prompt[0].content for each in found.pairs] == ["Who?"]
    assert len(found.left_out) == 1 and found.left_out[0].startswith("task 3: its data has image")


def test_plain_pairs_become_judgements_of_somebody_imported(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "Q", "chosen": "yes", "rejected": "no", "domain": "humour"},
                                      {"prompt": "Q", "chosen": "yes", "rejected": "no"}])  # fmt: skip
    found = read_file(tmp_path / "p.jsonl", NOW)
    (click,) = found.judgements
    assert (click.annotator, click.time, click.left, click.origin) == ("imported", NOW, None, "p.jsonl")
    assert click.turns(click.preferred)[0].content == "yes"
    assert "humour" in found.left_out[0]


def test_a_file_without_preferences_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "text.jsonl", [{"text": "only text"}])
    with pytest.raises(DataError, match="no preferences"):
        read_file(tmp_path / "text.jsonl", NOW)
