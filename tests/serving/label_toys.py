"""Pairs, judgements and a page for the tests of label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from luyen.core.records import Message
from luyen.serving.label_app import Site
from luyen.serving.label_records import Answer, Judgement, Pair
from luyen.serving.label_store import Store

HOSTILE = "</p><script>document.title='owned'</script><img src=x onerror=alert(1)> {{ 7*7 }} & \"quoted\""
CATEGORIES = ("wrong", "off topic")
PORT = 8765


def pair(number: int, *, good: str = "good", bad: str = "bad", system: bool = False) -> Pair:
    """A conversation of three turns with two answers."""
    head = [Message("system", "Be short.")] if system else []
    talk = [*head, Message("user", f"First {number}?"), Message("assistant", "Yes."), Message("user", f"And question {number}?")]
    writers = [{"model": name, "folder": f"runs/{name}", "weights": "ab", "sampling": {"temperature": 0.5}} for name in ("one", "two")]
    answers = [Answer((Message("assistant", f"{text} {number}"),), writer) for text, writer in zip((good, bad), writers, strict=True)]
    return Pair.ordered(talk, answers)


def judgement(
    about: Pair, who: str = "an", preferred: int | None = 0, left: int | None = 0, time: str = "2026-11-28T10:00:00.000Z", **more: Any
) -> Judgement:
    """A click."""
    if preferred is not None:
        more = {"grade": "better", "domain": "helpfulness", **more}
    return Judgement(about, who, more.pop("revision", 0), time, left, preferred, **more)


def client(store: Store, **more: Any) -> TestClient:
    """A browser on the page, whose posts come from the page itself."""
    site = Site(store, port=PORT, categories=CATEGORIES, **more)
    return TestClient(site.application(), base_url=f"http://127.0.0.1:{PORT}", headers={"origin": f"http://127.0.0.1:{PORT}"})


def lines(path: Path) -> list[str]:
    """Of a file, none where it is missing."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
