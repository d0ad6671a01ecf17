"""Pairs and judgements on disk: what is kept, in which order it is given, weeks and their manifests, cut lines, full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from luyen.core import manifest
from luyen.core.errors import ConfigError, DamagedFile, StorageError, UserError
from luyen.data.formats import read
from luyen.serving import label_store
from luyen.serving.label_records import Judgement, Pair, left_of
from luyen.serving.label_store import Conflict, Store, week_of
from serving.label_toys import judgement, lines, pair


def test_what_is_kept_is_read_back_as_it_was(tmp_path: Path) -> None:
    about = pair(1)
    click = judgement(about, safety="both_safe", categories=("wrong",), edits=(None, "other"), seconds=2.5)
    with Store.open(tmp_path / "labels", 3) as store:
        assert store.add([about, pair(2), about]) == 2
        assert store.judge(click)
    again = Store.read(tmp_path / "labels")
    assert again.seed == 3 and list(again.pairs.values()) == [about, pair(2)]
    assert again.current() == [click]
    assert Judgement.from_row(json.loads(json.dumps(click.as_row()))) == click


def test_sent_again_is_kept_once_and_a_correction_counts(tmp_path: Path) -> None:
    about = pair(1)
    with Store.open(tmp_path / "labels") as store:
        store.add([about])
        assert store.judge(judgement(about))
        assert not store.judge(judgement(about, time="2026-11-28T11:00:00.000Z", seconds=9.0)), "sent again"
        with pytest.raises(Conflict):
            store.judge(judgement(about, preferred=1))
        with pytest.raises(Conflict):
            store.judge(judgement(about, preferred=1, revision=2))
        assert store.judge(judgement(about, preferred=1, revision=1))
        assert [click.preferred for click in store.current()] == [1]
    assert len(lines(tmp_path / "labels" / "2026-W48" / "judgements.jsonl")) == 2


def test_the_order_of_pairs_and_how_many_people_see_each(tmp_path: Path) -> None:
    pairs = [pair(number) for number in range(3)]
    with Store.open(tmp_path / "labels") as store:
        store.add(pairs)
        assert store.next_pair("an", 1) == pairs[0]
        assert store.next_pair("an", 1) == pairs[0], "until it is judged"
        assert store.next_pair("binh", 1) == pairs[1], "the first one is before somebody"
        assert store.waiting() == 3
        store.judge(judgement(pairs[0], preferred=None))
        assert store.waiting() == 2 and store.last("an") == pairs[0] and store.last("binh") is None
        store.judge(judgement(pairs[1], "binh"))
        assert store.next_pair("an", 1) == pairs[2], "binh has judged the second"
        store.judge(judgement(pairs[2]))
        assert store.next_pair("an", 1) is None
        assert store.next_pair("dung", 1) == pairs[0], "skipped is not judged"
        assert store.next_pair("chi", 0) == pairs[0], "everybody judges all"
        assert store.waiting(1) == 0, "an has none left, so more must be written"


def test_places_are_drawn_by_seed_pair_and_person() -> None:
    ids = [pair(number).id for number in range(400)]
    drawn = [left_of(0, each, "an") for each in ids]
    assert 160 < sum(drawn) < 240
    assert drawn == [left_of(0, each, "an") for each in ids]
    assert drawn != [left_of(0, each, "binh") for each in ids] and drawn != [left_of(1, each, "an") for each in ids]


def test_numbers_of_answers_tell_nothing_of_who_wrote_them() -> None:
    first = [pair(number).answers[0].turns[0].content.startswith("good") for number in range(200)]
    assert 70 < sum(first) < 130
    one, two = pair(1).answers
    assert Pair.ordered(pair(1).prompt, [one, two]) == Pair.ordered(pair(1).prompt, [two, one])


def test_weeks_are_closed_with_a_manifest_and_pairs_to_train_on(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    with Store.open(folder) as store:
        store.judge(judgement(pair(1), preferred=1))
        store.judge(judgement(pair(2), preferred=None))
        store.judge(judgement(pair(1), preferred=0, revision=1, grade="slightly_better"))
        assert not store.closed("2026-W48")
        store.judge(judgement(pair(3), time="2026-12-01T00:00:00.000Z"))
        assert store.closed("2026-W48") and not store.closed("2026-W49")
        assert store.close() == ["2026-W49"]
        store.judge(judgement(pair(4), time="2026-12-02T00:00:00.000Z"))
        assert store.batches() == ["2026-W48", "2026-W49", "2026-W49-2"]
    facts = manifest.verify(folder / "2026-W48")
    assert (facts["kind"], facts["judgements"], facts["preferences"], facts["skipped"]) == ("preferences", 3, 1, 1)
    assert facts["annotators"] == ["an"] and facts["models"] == ["one", "two"]
    (record,) = read(folder / "2026-W48" / "preferences.jsonl").records
    assert record.chosen == pair(1).answers[0].turns and record.grade == "slightly_better"
    assert len(Store.read(folder).current()) == 4
    (folder / "2026-W48" / "judgements.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(DamagedFile, match=r"2026-W48/judgements\.jsonl"):
        Store.read(folder)


def test_weeks_are_those_of_iso_8601_in_utc() -> None:
    assert week_of("2026-11-28T10:00:00Z") == "2026-W48"
    assert week_of("2027-01-01T00:00:00Z") == "2026-W53"
    assert week_of("2026-11-30T05:00:00+07:00") == "2026-W48", "still Sunday in UTC"


def test_a_line_without_its_end_is_cut_off_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "labels"
    with Store.open(folder) as store:
        store.judge(judgement(pair(1)))
    path = folder / "2026-W48" / "judgements.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert len(Store.read(folder).current()) == 1
    assert path.read_bytes() != whole, "looking changes nothing"
    with Store.open(folder) as store:
        assert len(store.current()) == 1
        assert path.read_bytes() == whole
        store.judge(judgement(pair(2)))
    assert len(Store.read(folder).current()) == 2
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DamagedFile, match="line 1"):
        Store.read(folder)


def test_a_refused_write_keeps_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "labels") as store:
        store.judge(judgement(pair(1)))
        path = tmp_path / "labels" / "2026-W48" / "judgements.jsonl"
        before = path.read_bytes()
        with monkeypatch.context() as patched:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patched.setattr(label_store.os, "fsync", full)
            with pytest.raises(StorageError, match="No space"):
                store.judge(judgement(pair(2)))
        assert path.read_bytes() == before
        assert store.given("an", pair(2).id) == []
        assert store.judge(judgement(pair(2)))


def test_every_click_is_forced_to_the_disk_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[str] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        forced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    with Store.open(tmp_path / "labels") as store:
        monkeypatch.setattr(os, "fsync", spy)
        store.judge(judgement(pair(1)))
        folder = str(tmp_path / "labels")
        assert forced == [folder, f"{folder}/2026-W48/judgements.jsonl", f"{folder}/2026-W48"], "the folder, the line, the new file's name"
        store.judge(judgement(pair(2)))
        assert forced[3:] == [f"{folder}/2026-W48/judgements.jsonl"]


def test_folders_that_are_not_ours_in_use_or_of_another_seed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not made by"), Store.open(tmp_path / "other"):
        pass
    with pytest.raises(UserError, match="no judgements"):
        Store.read(tmp_path / "none")
    with Store.open(tmp_path / "labels", 1), pytest.raises(UserError, match="in use"), Store.open(tmp_path / "labels", 1):
        pass
    with pytest.raises(ConfigError, match="seed"), Store.open(tmp_path / "labels", 2):
        pass
    with Store.open(tmp_path / "labels", 2, keep_seed=True) as store:
        assert store.seed == 1
