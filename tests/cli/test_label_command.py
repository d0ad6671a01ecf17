"""`luyen label` as a process: its page is judged on, killed and started again; statistics, weeks, export and import."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from toy_models import write_model

from luyen.cli import label
from luyen.core import manifest
from luyen.core.errors import UserError
from luyen.core.files import write_jsonl
from luyen.serving.label_statistics import statistics
from luyen.serving.label_store import Store

PAIRS = [
    {"prompt": f"Question {number}?", "chosen": f"A good answer {number}.", "rejected": f"A bad answer {number}."} for number in range(6)
]


def luyen(*words: str) -> None:
    """The command in this process: its words go where the process's would."""
    label.command("label").main(list(words), standalone_mode=False)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """The page's process and a client that posts as the page does."""
    command = [sys.executable, "-m", "luyen.cli.main", "label", "serve.port=0", *words]
    with (folder / "errors.txt").open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment())
        try:
            assert process.stdout
            address = next((line.strip() for line in process.stdout if line.startswith("http://127.0.0.1:")), "")
            assert address, (folder / "errors.txt").read_text(encoding="utf-8")
            with httpx2.Client(base_url=address, headers={"origin": address.rstrip("/")}, timeout=20) as client:
                yield process, client
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def judge(client: httpx2.Client, who: str, side: str = "left") -> tuple[dict[str, object], dict[str, object]]:
    shown = client.get("/next", params={"annotator": who}).json()
    sent = {"pair": shown["pair"], "annotator": who, "revision": shown["revision"], "side": side, "grade": "better"}
    reply = client.post("/judge", json=sent)
    assert reply.status_code == 200, reply.text
    return sent, reply.json()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path


def test_a_killed_server_loses_no_click(folder: Path) -> None:
    told = []
    with served(folder, "pairs=pairs.jsonl") as (process, client):
        for side in ("left", "right", "left"):
            told.append(judge(client, "an", side)[0])
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    rows = [json.loads(line) for path in folder.glob("labels/*/judgements.jsonl") for line in path.read_text("utf-8").splitlines()]
    assert [row["pair"] for row in rows] == [sent["pair"] for sent in told]
    with served(folder, "pairs=pairs.jsonl") as (process, client):
        again = client.post("/judge", json=told[-1])
        assert again.json() == {"state": "kept", "new": False}, "the page sends again what it got no answer to"
        sent, kept = judge(client, "an")
        assert kept["new"] and sent["pair"] not in {row["pair"] for row in rows}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert "stopped; the same command continues" in (folder / "errors.txt").read_text(encoding="utf-8")
    assert len(Store.read(folder / "labels").current()) == 4


def test_a_kill_amid_clicks_keeps_every_one_that_was_told_to_be_kept(folder: Path) -> None:
    told: list[int] = []

    def hammer(client: httpx2.Client, pair: object) -> None:
        """Corrections of one pair, one after the other, until the server is gone."""
        with contextlib.suppress(httpx2.HTTPError):
            for revision in range(100_000):
                side = ("left", "right")[revision % 2]
                sent = {"pair": pair, "annotator": "an", "revision": revision, "side": side, "grade": "better"}
                if client.post("/judge", json=sent).json() == {"state": "kept", "new": True}:
                    told.append(revision)

    with served(folder, "pairs=pairs.jsonl") as (process, client):
        pair = client.get("/next", params={"annotator": "an"}).json()["pair"]
        clicks = threading.Thread(target=hammer, args=(client, pair))
        clicks.start()
        deadline = time.monotonic() + 30
        while len(told) < 40 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        clicks.join()
    with Store.open(folder / "labels") as store:
        kept = [click.revision for click in store.given("an", str(pair))]
    assert len(told) >= 40 and kept[: len(told)] == told and len(kept) <= len(told) + 1


def test_statistics_weeks_export_and_import(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    with served(folder, "pairs=pairs.jsonl") as (_, client):
        for who in ("an", "binh"):
            for _ in PAIRS:
                judge(client, who)
        with pytest.raises(UserError, match="in use"):
            luyen("close", "labels")
        luyen("stats", "labels")
        assert "12 judgements of 6 pairs" in capsys.readouterr().out, "while it is served"

    def said(*words: str) -> str:
        luyen(*words)
        return capsys.readouterr().out

    figures = said("stats", "labels").splitlines()
    assert figures[1].startswith("the left answer won 12 of 12: 100.0 % (75.8 to 100.0)")
    assert "Krippendorff's alpha" in "\n".join(figures) and "an and binh" in "\n".join(figures)
    week = Path(said("close").strip())
    assert manifest.verify(week)["judgements"] == 12
    for form, name, count in (("preferences", "p.jsonl", "12 rows"), ("hh", "hh.jsonl", "12 rows"), ("label-studio", "t.json", "6 tasks")):
        assert said("export", "labels", name, f"form={form}").strip() == f"{name}: {count}"
        assert "12 new judgements of 12, 0 new pairs" in said("import", f"from-{form}", name)
        assert "0 new judgements of 12" in said("import", f"from-{form}", name)
        assert said("stats", f"from-{form}").splitlines()[1] == figures[1], "places too"
    assert "0 rows" in said("export", "labels", "s.jsonl", "domain=safety")
    for target in ("p.jsonl", "labels/x.jsonl"):
        with pytest.raises(UserError, match=target):
            luyen("export", "labels", target)


@pytest.mark.slow
def test_models_write_pairs_while_somebody_judges(folder: Path) -> None:
    write_model(folder / "toy")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": row["prompt"], "completion": "x"} for row in PAIRS])
    words = ("models.toy=toy", "prompts=prompts.jsonl", "temperatures=[0.7,1.0]", "sampling.max_new_tokens=5", "ahead=2", "device=cpu")
    with served(folder, *words) as (_, client):
        seen = set()
        while (shown := client.get("/next", params={"annotator": "an"}).json())["state"] != "done":
            if shown["state"] == "pair":
                seen.add(judge(client, "an")[0]["pair"])
    assert len(seen) == len(PAIRS)
    writers = statistics(Store.read(folder / "labels").current())["writers"]
    assert {name: row["compared"] for name, row in writers.items()} == {"toy at 0.7": 6, "toy at 1": 6}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statz"], "Did you mean 'stats'?"),
        (["pairs=pairs.jsonl", "juges=2"], "judges"),
        (["pairs=nothing.jsonl"], "nothing.jsonl"),
        (["pairs=pairs.jsonl", "serve.host=0.0.0.0"], "needs a key"),
        (["stats", "nowhere"], "holds no judgements"),
        (["close", "nowhere"], "holds no judgements"),
        (["export", "labels"], "a file to write"),
        (["stats", "--out", "x"], "behind it"),
    ],
)
def test_wrong_words_are_one_line(folder: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as caught:
        luyen(*words)
    assert said in str(caught.value)
    assert not (folder / "nowhere").exists()
