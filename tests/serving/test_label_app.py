"""The page's server: what is shown and to whom, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from luyen.core.errors import StorageError
from luyen.serving.label_app import MOST_BYTES
from luyen.serving.label_config import LabelConfig
from luyen.serving.label_records import left_of
from luyen.serving.label_store import Store
from serving.label_toys import HOSTILE, PORT, client, judgement, lines, pair


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "labels") as opened:
        opened.add([pair(1), pair(2)])
        yield opened


def click(shown: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"pair": shown["pair"], "annotator": "an", "revision": shown["revision"], "side": "left", "grade": "better",
            "domain": "helpfulness", **more}  # fmt: skip


def test_a_pair_is_shown_judged_and_on_disk_before_the_next(store: Store) -> None:
    browser = client(store)
    shown = browser.get("/next?annotator=an").json()
    left = left_of(0, shown["pair"], "an")
    assert [turn["role"] for turn in shown["prompt"]] == ["user", "assistant", "user"]
    assert shown["left"][0]["content"] == pair(1).answers[left].turns[0].content
    assert shown["right"][0]["content"] == pair(1).answers[1 - left].turns[0].content
    assert not {"one", "two", "runs/one"} & set(json.dumps(shown).split('"')), "nothing tells who wrote what"
    reply = browser.post("/judge", json=click(shown, side="right", safety="both_safe", categories=["wrong"], seconds=4.5))
    assert reply.json() == {"state": "kept", "new": True}
    (row,) = map(json.loads, lines(next(store.folder.glob("*-W*/judgements.jsonl"))))
    assert (row["annotator"], row["left"], row["preferred"], row["grade"]) == ("an", left, 1 - left, "better")
    assert row["safety"] == "both_safe" and row["categories"] == ["wrong"] and row["seconds"] == 4.5
    assert row["answers"][0]["writer"]["sampling"] == {"temperature": 0.5} and row["time"].endswith("Z")
    assert browser.post("/judge", json=click(shown, side="right", safety="both_safe", categories=["wrong"])).json()["new"] is False
    assert browser.post("/judge", json=click(shown)).status_code == 409
    assert browser.get("/next?annotator=an").json()["pair"] == pair(2).id


def test_back_shows_what_was_said_and_a_correction_counts(store: Store) -> None:
    browser = client(store)
    assert browser.get("/next?annotator=an&back=1").status_code == 404
    shown = browser.get("/next?annotator=an").json()
    browser.post("/judge", json=click(shown, edit_left="rewritten"))
    again = browser.get("/next?annotator=an&back=1").json()
    assert again["pair"] == shown["pair"] and again["revision"] == 1
    assert again["before"]["side"] == "left" and again["before"]["edit_left"] == "rewritten" and again["before"]["edit_right"] is None
    assert browser.post("/judge", json=click(again, side="right", grade="slightly_better")).json()["new"]
    (current,) = store.current()
    assert current.grade == "slightly_better" and current.edits == (None, None)
    assert current.preferred != current.left


def test_skipped_pairs_do_not_come_again_and_the_end_is_said(store: Store) -> None:
    browser = client(store)
    for _ in range(2):
        shown = browser.get("/next?annotator=an").json()
        assert browser.post("/judge", json={"pair": shown["pair"], "annotator": "an", "revision": 0, "skip": True}).status_code == 200
    assert browser.get("/next?annotator=an").json() == {"state": "done"}
    assert browser.get("/next?annotator=binh").json()["state"] == "pair"
    assert [item.preferred for item in store.current()] == [None, None]


def test_while_models_write_and_when_they_cannot(store: Store) -> None:
    class Maker:
        finished, problem = False, ""

    maker = Maker()
    browser = client(store, maker=maker)
    for number in (1, 2):
        store.judge(judgement(pair(number)))
    assert browser.get("/next?annotator=an").json() == {"state": "writing"}
    maker.finished, maker.problem = True, "the weights are damaged"
    assert browser.get("/next?annotator=an").json() == {"state": "failed", "reason": "the weights are damaged"}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"side": None}, 422, "which answer is better"),
        ({"grade": "best"}, 422, "grade"),
        ({"domain": "safety"}, 422, "which answers are safe"),
        ({"domain": "safety", "safety": "rejected_safe"}, 422, "safety"),
        ({"pair": "../../etc/passwd"}, 404, "no such pair"),
        ({"pair": "x" * 65}, 422, "pair"),
        ({"annotator": " \n "}, 422, "printable"),
        ({"annotator": "a\u0000b"}, 422, "printable"),
        ({"categories": ["invented here"]}, 422, "no category"),
        ({"edit_left": "  "}, 422, "empty"),
        ({"edit_left": "x" * 40_000}, 422, "edit_left"),
        ({"folder": "/tmp"}, 422, "folder"),
        ({"revision": 7}, 409, "number 8"),
        ({"seconds": -1}, 422, "seconds"),
        ({"edit_left": "\ud800"}, 422, "surrogates"),
    ],
)
def test_what_is_no_judgement_is_refused_in_words_and_not_kept(store: Store, change: dict[str, Any], status: int, said: str) -> None:
    browser = client(store)
    body = json.dumps({**click(browser.get("/next?annotator=an").json()), **change})
    reply = browser.post("/judge", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status and said in reply.json()["reason"]
    assert store.current() == []


def test_edits_that_make_both_answers_equal_are_refused(store: Store) -> None:
    browser = client(store)
    shown = browser.get("/next?annotator=an").json()
    reply = browser.post("/judge", json=click(shown, edit_left=shown["right"][0]["content"]))
    assert reply.status_code == 422 and "equal" in reply.json()["reason"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"a":' * 50_000])
def test_bytes_that_are_no_object_are_refused(store: Store, body: bytes) -> None:
    reply = client(store).post("/judge", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422


def test_a_body_over_the_limit_is_refused(store: Store) -> None:
    reply = client(store).post("/judge", content=b" " * (MOST_BYTES + 1), headers={"content-type": "application/json"})
    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "evil.example"}, 421),
        ({"host": f"evil.example:{PORT}"}, 421),
        ({"host": f"127.0.0.1.evil.example:{PORT}"}, 421),
        ({"host": f"127.0.0.1@evil.example:{PORT}"}, 421),
        ({"host": "127.0.0.1:x"}, 421),
        ({"host": ""}, 421),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": f"localhost:{PORT}", "origin": f"http://localhost:{PORT}"}, 200),
        ({"host": f"[::1]:{PORT}", "origin": f"http://[::1]:{PORT}"}, 200),
    ],
)
def test_only_the_page_itself_can_post(store: Store, headers: dict[str, str], status: int) -> None:
    browser = client(store)
    body = json.dumps(click(browser.get("/next?annotator=an").json()))
    reply = browser.post("/judge", content=body, headers={"content-type": "application/json", **headers})
    assert reply.status_code == status
    assert len(store.current()) == (status == 200)


def test_reading_needs_the_right_host_too(store: Store) -> None:
    browser = client(store)
    for path in ("/", "/next?annotator=an", "/stats", "/label.js"):
        assert browser.get(path, headers={"host": "evil.example"}).status_code == 421
        assert browser.get(path).status_code == 200
    assert browser.put("/judge").status_code == 405
    for path in ("/label.css/../../label_app.py", "/..%2flabel_app.py", "/pairs.jsonl", "/label.json"):
        assert browser.get(path).status_code == 404


def test_a_key_is_asked_for_kept_in_a_cookie_and_taken_out_of_the_address(store: Store) -> None:
    key = "k" * 16
    browser = client(store, key=key)
    for path in ("/", "/next?annotator=an", "/stats", "/?key=wrong", "/label.js"):
        assert browser.get(path).status_code == 401
    assert browser.post("/judge", json={}).status_code == 401
    welcome = browser.get(f"/?key={key}&annotator=an", follow_redirects=False)
    assert welcome.status_code == 303 and welcome.headers["location"] == "/?annotator=an"
    assert "httponly" in welcome.headers["set-cookie"].lower() and "samesite=strict" in welcome.headers["set-cookie"].lower()
    assert browser.get("/next?annotator=an").json()["state"] == "pair"


def test_text_from_outside_is_text_and_the_page_loads_nothing_else(tmp_path: Path) -> None:
    with Store.open(tmp_path / "labels") as store:
        about = pair(1, good=HOSTILE)
        store.add([about])
        store.judge(judgement(about, "<b>binh</b>"))
        browser = client(store)
        page = browser.get("/", params={"annotator": HOSTILE[:60]})
        assert "<script>document" not in page.text and "&lt;script&gt;" in page.text
        assert "<b>binh" not in browser.get("/stats").text
        shown = browser.get("/next?annotator=an")
        assert shown.headers["content-type"] == "application/json" and shown.headers["x-content-type-options"] == "nosniff"
        for reply in (page, shown, browser.get("/stats")):
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert reply.headers["cache-control"] == "no-store"
        assert "http://" not in page.text and "https://" not in page.text


def test_a_full_disk_is_told_and_the_page_does_not_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = client(store)
    shown = browser.get("/next?annotator=an").json()

    def full(*_: Any) -> bool:
        raise StorageError("cannot write: No space left on device")

    monkeypatch.setattr(store, "judge", full)
    reply = browser.post("/judge", json=click(shown))
    assert reply.status_code == 507 and "not saved" in reply.json()["reason"]
    assert browser.get("/next?annotator=an").json()["pair"] == shown["pair"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "nothing to judge"),
        ({"pairs": "a", "prompts": "b"}, "either pairs"),
        ({"models": {"a": "b"}}, "nothing to judge"),
        ({"models": {"a": "b"}, "prompts": "c", "temperatures": [0]}, "same answer"),
        ({"pairs": "a", "serve": {"host": "0.0.0.0"}}, "needs a key"),
        ({"pairs": "a", "serve": {"key": "short"}}, "16"),
        ({"pairs": "a", "categories": ["x", "x"]}, "different"),
    ],
)
def test_configs_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelConfig.model_validate(values)
    LabelConfig.model_validate({"pairs": "a", "serve": {"host": "0.0.0.0", "key": "k" * 16}})
