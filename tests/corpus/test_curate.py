"""Curation as a whole: the funnel adds up, order and processes do not matter, stops and damage are survived."""

import hashlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luyen.core import interrupt
from luyen.core.config import load
from luyen.core.errors import ConfigError, DamagedFile, DataError, Interrupted
from luyen.core.files import read_jsonl, write_jsonl, write_lines
from luyen.core.manifest import seal
from luyen.corpus import parts, sources
from luyen.corpus.curate import CurateConfig, curate, read_documents
from luyen.corpus.pages import pack_body

WORDS = "the river runs under old stone bridges and children of that town have played with paper boats in it to this day".split()  # noqa: SIM905
SMALL = CurateConfig(quality="reference", heldout_fraction=0.1)


def text(seed: int, sentences: int = 12) -> str:
    generator = random.Random(seed)
    return "\n".join(" ".join(generator.sample(WORDS, 9) + [f"w{generator.randrange(10**6)}"]).capitalize() + "." for _ in range(sentences))


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Documents with two exact and two near duplicates, one empty, one in French, one with an address."""
    made: list[dict[str, Any]] = [{"id": f"d{index:03d}", "text": text(index), "stars": index} for index in range(count)]
    made += [{"id": "exact", "text": text(1) + "\n\n"}]
    made += [{"id": "near", "text": text(2, 60)}, {"id": "near2", "text": text(2, 60) + "\nOne more."}]
    made += [{"id": "empty", "text": " \u200b\n"}, {"id": "mail", "text": text(500) + "\nMail: nam@vnu.edu.vn"}]
    made += [{"id": "fr", "text": "Le gouvernement a présenté son projet devant les députés réunis à Paris. " * 4}]
    return made


def run(source: Path, folder: Path, config: CurateConfig = SMALL) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return curate(config, source, folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "funnel.json"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl.gz", rows()[:25])
    write_jsonl(folder / "b.jsonl.zst", rows()[25:])
    return folder


def dropped(folder: Path) -> dict[str, str]:
    return {document.id: document.meta["rule"] for document in read_documents(folder, "dropped")}


def test_every_document_is_somewhere_and_dropped_ones_say_why(source: Path, tmp_path: Path) -> None:
    funnel = run(source, tmp_path / "out", load(CurateConfig, {"quality": "reference", "languages": ["en"], "heldout_fraction": 0.1}))
    out = tmp_path / "out"
    train, heldout = list(read_documents(out)), list(read_documents(out, "heldout"))
    assert dropped(out) == {"empty": "empty", "fr": "other_language", "exact": "exact_duplicate", "near": "near_duplicate"}
    assert len(train) + len(heldout) + 4 == len(rows()) == funnel["documents"]
    assert {document.id for document in train} | {document.id for document in heldout} | set(dropped(out)) == {row["id"] for row in rows()}
    assert 1 <= len(heldout) == funnel["heldout"]["documents"] < 12
    mail = next(document for document in [*train, *heldout] if document.id == "mail")
    assert mail.text.endswith("Mail: <email>") and funnel["masked"] == {"email": 1} and mail.language == "en"
    assert next(document for document in [*train, *heldout] if document.id == "d007").meta == {"stars": 7}
    reasons = {document.id: document.meta["reason"] for document in read_documents(out, "dropped")}
    assert "same text as d001" in reasons["exact"] and "near2" in reasons["near"] and "fr with probability" in reasons["fr"]
    assert not (out / "parts").exists()


def test_funnel_adds_up(source: Path, tmp_path: Path) -> None:
    funnel = run(source, tmp_path / "out")
    for before, after in zip(funnel["steps"], funnel["steps"][1:], strict=False):
        assert (before["documents_out"], before["bytes_out"]) == (after["documents_in"], after["bytes_in"])
    for step in funnel["steps"]:
        assert step["documents_in"] == step["documents_out"] + sum(step["dropped"].values())
        assert step["bytes_in"] == step["bytes_out"] + step["bytes_dropped"] + step["bytes_changed"]
    last = funnel["steps"][-1]
    assert last["documents_out"] == funnel["train"]["documents"] + funnel["heldout"]["documents"]
    assert last["bytes_out"] == funnel["train"]["bytes"] + funnel["heldout"]["bytes"]
    texts = [len(document.text.encode()) for document in read_documents(tmp_path / "out")]
    assert sum(texts) == funnel["train"]["bytes"]


@pytest.mark.parametrize("unit", ["document", "section"])
def test_order_of_the_input_does_not_matter(tmp_path: Path, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_ITEMS", 3)
    config = load(CurateConfig, {"quality": "reference", "heldout_fraction": 0.2, "heldout_unit": unit})
    results = []
    for seed in range(3):
        made = rows()
        random.Random(seed).shuffle(made)
        folder = tmp_path / f"in{seed}"
        folder.mkdir()
        cut = 10 + 7 * seed
        write_jsonl(folder / "x.jsonl", made[:cut])
        write_jsonl(folder / "y.jsonl.xz", made[cut:])
        run(folder, tmp_path / f"out{seed}", config)
        results.append({name: data for name, data in content(tmp_path / f"out{seed}").items() if not name.startswith("dropped")})
        assert dropped(tmp_path / f"out{seed}") == dropped(tmp_path / "out0")
    assert results[0] == results[1] == results[2]


def test_processes_do_not_matter(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_ITEMS", 7)
    one = run(source, tmp_path / "one")
    two = run(source, tmp_path / "two", SMALL.model_copy(update={"processes": 2}))
    assert one == two and content(tmp_path / "one") == content(tmp_path / "two")


def test_stopped_work_is_continued_and_not_done_twice(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, tmp_path / "whole")
    monkeypatch.setattr(sources, "CHUNK_ITEMS", 10)
    calls: list[str] = []
    original = parts.make

    def counted(*arguments: Any) -> parts.Part:
        calls.append(arguments[1])
        if len(calls) == 3:
            interrupt._requested.append(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(parts, "make", counted)
    try:
        with pytest.raises(Interrupted):
            run(source, tmp_path / "out")
    finally:
        interrupt._requested.clear()
    first = list(calls)
    assert len(first) == 3
    damaged = tmp_path / "out" / "parts" / f"{first[0]}.kept.jsonl.zst"
    damaged.write_bytes(damaged.read_bytes()[:-3])  # a part that is not whole is made again
    (tmp_path / "out" / "parts" / ".tmp-file-4194304-x").write_bytes(b"left by a crash")
    run(source, tmp_path / "out")
    assert calls.count(first[0]) == 2 and calls.count(first[1]) == 1 and calls.count(first[2]) == 1
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert run(source, tmp_path / "out")["key"]  # a third call finds it done


@pytest.mark.slow
def test_killed_at_any_moment_it_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from luyen.corpus import sources, curate as c\n"
        "if __name__ == '__main__':\n"
        "    sources.CHUNK_ITEMS = 3\n"
        "    c.curate(c.CurateConfig(quality='reference', heldout_fraction=0.1), Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    out = tmp_path / "out"
    out.mkdir()
    generator = random.Random(0)
    command = [sys.executable, str(script), str(source), str(out)]
    started = time.monotonic()
    assert subprocess.run(command, check=False).returncode == 0
    whole = time.monotonic() - started
    for _ in range(8):
        shutil.rmtree(out)
        out.mkdir()
        process = subprocess.Popen(command)
        time.sleep(whole * generator.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert subprocess.run(command, check=False).returncode == 0
        assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "not an archive"])
def test_damaged_shard_is_reported_and_the_others_are_done(source: Path, tmp_path: Path, harm: str) -> None:
    seal(source, "texts")
    victim = source / "b.jsonl.zst"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "not an archive": b"hello", "missing": b""}[harm])
    if harm == "missing":
        victim.unlink()
    with pytest.raises(DamagedFile, match=r"b\.jsonl\.zst.*1 of 2 input files.*damaged=skip"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "funnel.json").exists() and not list((tmp_path / "out").glob("train-*"))
    assert list((tmp_path / "out" / "parts").glob("*.json"))
    funnel = run(source, tmp_path / "out", SMALL.model_copy(update={"damaged": "skip"}))
    assert funnel["documents"] == 25 and funnel["files_damaged"][0].startswith("b.jsonl.zst")


def test_changed_plain_shard_is_told_by_its_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", rows())
    seal(folder, "texts")
    (folder / "a.jsonl").write_bytes((folder / "a.jsonl").read_bytes().replace(b"river", b"rifer", 1))
    with pytest.raises(DamagedFile, match="sha256 of its manifest"):
        run(folder, tmp_path / "out")


def test_a_shard_that_changed_or_is_gone_is_never_read_as_the_corpus(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "out"
    run(source, folder)
    seal(folder, "corpus")
    whole, path = list(read_documents(folder)), folder / "train-00000.jsonl.zst"
    (folder / "luyen.json").rename(tmp_path / "luyen.json")
    write_jsonl(path, [{**row, "text": "poison"} for row in read_jsonl(path)])
    assert len(list(read_documents(folder))) == len(whole)  # readable, so only the manifest can tell
    (tmp_path / "luyen.json").rename(folder / "luyen.json")
    with pytest.raises(DamagedFile, match=r"train-00000\.jsonl\.zst"):
        next(read_documents(folder))
    path.unlink()
    with pytest.raises(DamagedFile, match=r"train-00000\.jsonl\.zst: is missing"):
        next(read_documents(folder))
    folder.rename(tmp_path / ".tmp-old-4194304-0-out")  # moved away for a new one that never came
    assert list(read_documents(folder, "heldout"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_archive_without_manifest_gives_nothing(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", rows()[:20])
    write_jsonl(folder / f"b.jsonl{suffix}", rows()[20:])
    path = folder / f"b.jsonl{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFile, match=r"b\.jsonl"):
        run(folder, tmp_path / "out")


def test_malformed_rows_are_dropped_with_their_line(tmp_path: Path) -> None:
    lines = [b'{"text": 5}', b"[1]", b"{", b"\xff\xfe", b'{"text": "x", "n": NaN}', b'{"no": 1}', b"[" * 10_000]
    lines += [b'{"text": "\\ud800 lone"}', b""]
    good = [json.dumps(row).encode() for row in rows(10)]
    write_lines(tmp_path / "in.jsonl", [*lines, *good])
    funnel = run(tmp_path / "in.jsonl", tmp_path / "out")
    bad = [document for document in read_documents(tmp_path / "out", "dropped") if document.meta["rule"] == "malformed"]
    assert sorted(int(document.meta["source"].rpartition(":")[2]) for document in bad) == [1, 2, 3, 4, 5, 6, 7]
    assert funnel["documents"] == 8 + len(good)


def test_values_that_cannot_be_written_drop_their_row_only(tmp_path: Path) -> None:
    body = {"text": text(900)}
    bad = [{"id": "\ud800"}, {"url": "http://a/\udfff"}, {"note": "\ud800"}, {"\ud800": 1}, {"meta": {"a": ["\ud800"]}}]
    lines = [json.dumps(body | extra).encode() for extra in bad]
    lines += [b'{"score": 1e999, "text": "x"}', b'{"meta": {"score": -1e999}, "text": "x"}']
    lines += [json.dumps({"id": "title", "title": "a\ud800", "text": " "}).encode(), *(json.dumps(row).encode() for row in rows(10))]
    write_lines(tmp_path / "in.jsonl", lines)
    funnel = run(tmp_path / "in.jsonl", tmp_path / "out")
    rules = [document.meta["rule"] for document in read_documents(tmp_path / "out", "dropped")]
    assert rules.count("malformed") == 7 and funnel["documents"] == len(lines)
    reasons = {document.meta["reason"] for document in read_documents(tmp_path / "out", "dropped") if document.meta["rule"] == "malformed"}
    assert all("cannot be written" in reason for reason in reasons)
    assert next(document for document in read_documents(tmp_path / "out", "dropped") if document.id == "title").title == "a\ufffd"


def test_huge_lines_and_files_cost_bounded_memory(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with open(folder / "line.jsonl", "wb") as file:
        file.write(b'{"text": "')
        for _ in range(300):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + json.dumps(rows()[0]).encode() + b"\n")
    with open(folder / "file.txt", "wb") as file:
        file.truncate(1_000_000_000)
    write_jsonl(folder / "word.jsonl", [{"id": "word", "text": "x" * 400_000}, {"id": "spaces", "text": "a" + " " * 25_000 + text(9)}])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    funnel = run(folder, tmp_path / "out", SMALL.model_copy(update={"max_document_bytes": 1_000_000}))
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (1 << 29 if sys.platform == "darwin" else 1 << 19)  # bytes, KiB
    assert funnel["steps"][0]["dropped"] == {"too_large": 2}
    assert funnel["steps"][0]["bytes_dropped"] == 1_000_000_000 + 300_000_013
    assert dropped(tmp_path / "out")["word"] == "longest_word"
    assert {document.id for document in read_documents(tmp_path / "out")} == {"d000", "spaces"}


def test_crawl_folder_html_and_text_files(tmp_path: Path) -> None:
    body = f"<title>Page</title><main><h1>River</h1><p>{text(3)}</p></main>".encode()
    digest = hashlib.sha256(body).hexdigest()
    page = {"url": "http://a.vn/x", "status": 200, "content_type": "text/html", "charset": "utf-8", "sha256": digest, **pack_body(body)}
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    write_jsonl(crawl / "pages-00000.jsonl", [page, {**page, "url": "http://a.vn/bad", "sha256": "0" * 64}])
    (crawl / "skipped.jsonl").write_text('{"text": "not a page"}\n')
    run(crawl, tmp_path / "out", SMALL.model_copy(update={"heldout_fraction": 0}))
    (document,) = read_documents(tmp_path / "out")
    assert document.url == "http://a.vn/x" and document.title == "Page" and document.text.startswith("# River\n\n")
    assert list(dropped(tmp_path / "out").values()) == ["damaged"]
    files = tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    (files / "sub" / "p.html").write_bytes(body)
    (files / "t.txt").write_text(text(4))
    (files / "image.png").write_bytes(b"\x89PNG")
    funnel = run(files, tmp_path / "out2", SMALL.model_copy(update={"heldout_fraction": 0}))
    assert {document.url for document in read_documents(tmp_path / "out2")} == {"sub/p.html", "t.txt"}
    assert funnel["files_ignored"] == 1


def test_sections_are_held_out_and_taken_out(tmp_path: Path) -> None:
    long = [{"id": f"doc{n}", "text": "\n\n".join(f"## Part {n}.{k}\n\n{text(1000 * n + k, 8)}" for k in range(12))} for n in range(6)]
    write_jsonl(tmp_path / "in.jsonl", long)
    config = load(CurateConfig, {"quality": "none", "heldout_unit": "section", "heldout_fraction": 0.15})
    funnel = run(tmp_path / "in.jsonl", tmp_path / "out", config)
    train = {document.id: document.text for document in read_documents(tmp_path / "out")}
    heldout = list(read_documents(tmp_path / "out", "heldout"))
    assert len(train) == 6 and 3 <= len(heldout) <= 25
    for document in heldout:
        name = document.meta["document"]
        assert document.id == f"{name}#{document.meta['section']}" and document.text.startswith(f"## {document.meta['heading']}")
        assert document.text not in train[name]
        original = next(row["text"] for row in long if row["id"] == name)
        assert document.text in original
    assert funnel["train"]["bytes"] + funnel["heldout"]["bytes"] + funnel["bytes_of_cuts"] == funnel["steps"][-1]["bytes_out"]


def test_ids_given_twice_become_different(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": "same", "text": text(index)} for index in range(3)])
    run(tmp_path / "in.jsonl", tmp_path / "out")
    assert [document.id for document in read_documents(tmp_path / "out")] == ["same", "same~2", "same~3"]


def test_one_id_never_stands_on_both_sides(tmp_path: Path) -> None:
    made = [{"id": "same", "text": text(index)} for index in range(8)] + [{"id": "same~2", "text": text(100)}]
    write_jsonl(tmp_path / "in.jsonl", made)
    run(tmp_path / "in.jsonl", tmp_path / "out", SMALL.model_copy(update={"heldout_fraction": 0.5}))
    train, heldout = ([document.id for document in read_documents(tmp_path / "out", split)] for split in ("train", "heldout"))
    assert train and heldout and len({*train, *heldout}) == len(made)


def test_the_manifest_is_read_once_whatever_the_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}.txt").write_text(text(index))
    seal(folder, "texts")
    reads: list[Path] = []
    original = sources.read_json

    def counted(path: Path) -> Any:
        reads.append(path)
        return original(path)

    monkeypatch.setattr(sources, "read_json", counted)
    run(folder, tmp_path / "out")
    assert 1 <= len(reads) <= 2


def test_bounds_of_the_sections() -> None:
    for section, values in (
        ("dedup", {"bands": 0}), ("dedup", {"rows": 0}), ("dedup", {"shingle": 0}), ("language", {"min_probability": 1.5}),
        ("language", {"min_characters": -1}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(values))):
            load(CurateConfig, {section: values})


def test_many_parts_are_merged_in_rounds(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, tmp_path / "whole")
    monkeypatch.setattr(sources, "CHUNK_ITEMS", 2)
    monkeypatch.setattr(parts, "FAN_IN", 3)
    run(source, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_wrong_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for path, words in (("none", "no file or folder"), ("out", "nothing to read")):
        with pytest.raises(DataError, match=words):
            curate(SMALL, tmp_path / path, tmp_path / "out")
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="suffix"):
        curate(SMALL, tmp_path / "x.png", tmp_path / "out")
    write_jsonl(tmp_path / "short.jsonl", [{"text": "Hi."}])
    with pytest.raises(DataError, match="min_words"):
        curate(SMALL, tmp_path / "short.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match="languages"):
        curate(load(CurateConfig, {"languages": ["english"]}), tmp_path / "short.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="Run curate first"):
        list(read_documents(tmp_path))


def test_nothing_else_is_written(source: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    run(source, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["dropped-00000.jsonl.zst", "funnel.json", "heldout-00000.jsonl.zst", "train-00000.jsonl.zst"]
