"""The page: what it says about good, bad, unfinished, damaged and hostile runs."""

from __future__ import annotations

import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luyen.core.errors import DataError
from luyen.core.files import read_jsonl, write_jsonl
from luyen.report.blocks import Exchange, Group, Limits
from luyen.report.headline import headline
from luyen.report.page import CARD, PAGE, SECTIONS, render, write
from luyen.report.reading import open_run

from .toy_run import PROMPTS, STAGES, build

PAYLOADS = (
    '"><script>alert(1)</script>',
    "'\"><img src=x onerror=alert(1)>",
    "</style></svg></title><svg/onload=alert(1)>",
    "javascript:alert(1)//[x](javascript:alert(1))",
    "{{ 7*7 }}{% include '/etc/passwd' %}",
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements and attributes of a page; fails on elements that are left open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


def read(run: Path) -> tuple[str, Page]:
    source = write(run).read_text(encoding="utf-8")
    return source, Page(source)


@pytest.fixture(scope="module")
def page(finished_run: Path) -> tuple[str, Page]:
    return read(finished_run)


def test_the_headline_is_measured_and_honest(page: tuple[str, Page]) -> None:
    text = page[1].text
    assert "It answered 64 % of the taught questions exactly, though asked in words it had not seen." in text
    assert "chat 64 % (119 of 185), retrieval 21 % (39 of 185)" in text
    assert "it invented an answer in 90 % (54 of 60) of the cases: do not trust its answers" in text
    assert "read 15 pages, kept 12 documents and trained a model of 3.1 million parameters on 5.73 million tokens" in text


def test_every_part_of_the_run_is_told(page: tuple[str, Page]) -> None:
    source, parsed = page
    for said in (
        "18 % more than the 2 min 00 s expected", "Energy could not be measured", "12 clean documents of 15 (80 %)", "near duplicate 1",
        "11 words, at least 50", "email 3, phone 1", "4,096", "The beginning of a text as the model sees it: 20 tokens",
        "It returns the greatest common divisor",
        "Entries taught 185", "vocab_size: 4096", "luyen chat", "luyen run quickstart --budget 1h", "did not stop by itself", "+0.095",
        "57.3 to 71.3", "by kind of question", "asked in the chat template",
        "chat, step 0 (still base)", "measured on held-out documents", "admitted not to know",
    ):  # fmt: skip
        assert said in parsed.text, said
    assert all(prompt in parsed.text for prompt in PROMPTS)
    assert source.count("<svg") == 6 and len(source.encode()) < 400_000
    assert not any(run in parsed.text for run in ("None", "nan", "Undefined"))


def test_the_same_run_gives_the_same_bytes(finished_run: Path) -> None:
    assert write(finished_run).read_bytes() == write(finished_run).read_bytes()


def test_the_page_is_self_contained_and_accessible(page: tuple[str, Page]) -> None:
    source, parsed = page
    assert not [tag for tag, _ in parsed.elements if tag in ("script", "iframe", "object", "embed", "form", "base", "img")]
    links = [
        value for _, attributes in parsed.elements for name, value in attributes.items() if name in ("href", "src", "xlink:href", "action")
    ]
    assert all(link is not None and (link.startswith("#") or link == "data:,") for link in links)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link and link.startswith("#") and len(link) > 1} <= set(ids)
    policy = next(a["content"] for tag, a in parsed.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "script-src" not in policy
    headings = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings.count(1) == 1 and all(after - before <= 1 for before, after in zip(headings, headings[1:], strict=False))
    assert all("aria-label" in attributes for tag, attributes in parsed.elements if attributes.get("role") == "img")
    assert all(attributes.get("scope") for tag, attributes in parsed.elements if tag == "th")


def test_hostile_text_stays_text(tmp_path: Path, page: tuple[str, Page]) -> None:
    payload = " ".join(PAYLOADS)
    source, parsed = read(build(tmp_path / "run", hostile=payload))
    assert {tag for tag, _ in parsed.elements} == {tag for tag, _ in page[1].elements}
    assert {name for _, attributes in parsed.elements for name in attributes} == {
        name for _, attributes in page[1].elements for name in attributes
    }
    assert parsed.text.count(payload) > 20, "the text itself is shown, braces and all"
    assert "root:x:0" not in source


def test_control_characters_and_half_surrogates_do_not_break_the_page(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    write_jsonl(run / "chat" / "samples.jsonl", [{"step": 1, "prompt": "bad \x00\x1b[2J\ud800", "answer": "\u202eevil"}])
    source, parsed = read(run)
    assert "bad \ufffd\ufffd[2J\ufffd" in parsed.text and "\x00" not in source


@pytest.mark.parametrize("stage", ["pages", "base", "chat", "before_after"])
def test_an_interrupted_run_says_where_it_stands(tmp_path: Path, stage: str) -> None:
    run = build(tmp_path / "run", until=stage)
    _, parsed = read(run)
    done = list(STAGES).index(stage)
    assert f"Not finished: {done} of 7 stages done." in parsed.text
    assert f"Stage {stage} was begun and is not finished; the same command continues it." in parsed.text
    assert "recipe.resolved.yaml --out" in parsed.text, "the command that continues it"


def test_a_failed_stage_and_its_reason_are_told(tmp_path: Path) -> None:
    run = build(tmp_path / "run", until="base")
    events = [*read_jsonl(run / "events.jsonl")][:-1]
    write_jsonl(
        run / "events.jsonl", [*events, {"time": "2026-11-21T09:13:00+00:00", "event": "failed", "stage": "base", "error": "loss is nan"}]
    )
    _, parsed = read(run)
    assert "Stage base failed: loss is nan." in parsed.text


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    (run / "corpus" / "funnel.json").write_text("{not json")
    with open(run / "chat" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 801, "lo')
    shard = next((run / "corpus").glob("dropped-*.zst"))
    shard.write_bytes(shard.read_bytes()[:-20])
    _, parsed = read(run)
    for name in ("corpus/funnel.json", "chat/metrics.jsonl: line", "corpus/dropped-00000.jsonl.zst"):
        assert name in parsed.text
    assert "It answered 64 %" in parsed.text


def test_a_stage_folder_of_an_earlier_recipe_is_shown_as_such(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    shutil.copytree(run / "chat", run / "older")
    _, parsed = read(run)
    assert "left from an earlier recipe" in parsed.text


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run folder"):
        write(tmp_path)
    with pytest.raises(DataError, match="no run folder"):
        write(tmp_path / "absent")


def test_only_a_recipe_is_enough(tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.yaml").write_text("name: x\nstages: {base: {do: pretrain}}\n")
    _, parsed = read(tmp_path)
    assert "Not finished: 0 of 1 stage done." in parsed.text and (tmp_path / CARD).is_file()


def test_the_page_stays_under_two_megabytes(tmp_path: Path) -> None:
    run = build(tmp_path / "run", hostile='"<&' * 700, long=40)
    source, parsed = read(run)
    assert len(source.encode()) < 2_000_000
    assert "(cut: " in parsed.text


def test_a_page_that_would_be_too_large_shows_less(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = render(open_run(finished_run))
    most = len(whole.encode()) - 20_000
    monkeypatch.setattr("luyen.report.page.MOST_BYTES", most)
    smaller = render(open_run(finished_run))
    assert len(smaller.encode()) <= most
    assert smaller.count("<tr") + smaller.count("<details") < whole.count("<tr") + whole.count("<details")
    assert "It answered 64 %" in Page(smaller).text


def test_examples_are_not_picked_by_hand(finished_run: Path) -> None:
    limits = Limits(examples=2)
    evaluation = next(build_section(open_run(finished_run), limits) for build_section in SECTIONS if build_section.__name__ == "evaluation")
    taught = next(block for block in evaluation.blocks if isinstance(block, Group) and block.opened)
    verdicts = [
        [quote.tone for quote in exchange.answers if quote.label == "chat"] for exchange in taught.blocks if isinstance(exchange, Exchange)
    ]
    assert verdicts == [["good"], ["good"], ["bad"], ["bad"]], "right ones and wrong ones, as many of each"


def scramble(value: Any, noise: random.Random) -> Any:
    """A JSON value with some parts replaced by values of other types."""
    if noise.random() < 0.08:
        return noise.choice([None, True, -1, 1e400, float("nan"), 10**400, "x", "", [], {}, [None], {"a": [1]}, {"": {}}])
    if isinstance(value, dict):
        return {key: scramble(item, noise) for key, item in value.items() if noise.random() > 0.03}
    return [scramble(item, noise) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(4))
def test_values_of_any_type_anywhere_never_crash_it(tmp_path: Path, finished_run: Path, seed: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns(PAGE, CARD))
    noise = random.Random(seed)
    for path in sorted(run.rglob("*.json")):
        path.write_text(json.dumps(scramble(json.loads(path.read_text()), noise)))
    for path in sorted(run.rglob("*.jsonl")):
        rows = [scramble(json.loads(line), noise) for line in path.read_text().splitlines()[:60]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, shown = read(run)
    assert source.rstrip().endswith("</html>") and [tag for tag, _ in shown.elements].count("h1") == 1
    sections = [attributes["id"] for tag, attributes in shown.elements if tag == "section"]
    assert sections and len(sections) == len(set(sections)), "what can be told is still told, each once"
    assert not any(tag in ("script", "iframe", "object") for tag, _ in shown.elements)


def _with_pages(tmp_path: Path, exact: float) -> Path:
    """A run whose model was also asked with the best passage before each question."""
    run = build(tmp_path / "run")
    path = run / "before_after" / "results.json"
    value = json.loads(path.read_text())
    value["rows"].append({"model": "chat with pages", "set": "taught", "examples": 185, "exact_match": exact})
    path.write_text(json.dumps(value))
    return run


def test_each_figure_says_which_way_of_asking_it_is_of(tmp_path: Path, page: tuple[str, Page]) -> None:
    text = read(_with_pages(tmp_path, 0.6))[1].text
    assert (
        "That is the model alone, from its weights (luyen chat --no-retrieval). With the best passage before each question, as luyen chat "
        "asks unless told otherwise, it is 60 % (111 of 185)."
    ) in text
    assert "of taught questions exactly right, by the model alone" in text
    assert "chat alone: luyen chat --no-retrieval 185" in text and "chat with pages as luyen chat asks 185" in text
    assert "--no-retrieval)" not in page[1].text, "a run that asked in one way only has nothing to tell apart"


def test_held_out_text_alone_is_a_result(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    path = run / "before_after" / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": []}))
    text = read(run)[1].text
    assert "Held-out text costs base 1.305 and chat 1.400 bits per byte." in text
    assert "left no results" not in text and "nothing was evaluated" not in text and "+0.095" in text


def test_headline_when_nothing_was_learned(tmp_path: Path) -> None:
    run = build(tmp_path / "run")
    path = run / "before_after" / "results.json"
    results = json.loads(path.read_text())
    for row in results["rows"]:
        if "exact_match" in row:
            row["exact_match"] = 0.041
    path.write_text(json.dumps(results))
    assert headline(open_run(run)).title.startswith("It learned little: it answered 4")


def _with_ngram(tmp_path: Path, bits: float, exact: float) -> str:
    """The page's text for a run whose n-gram costs `bits` a byte and answers `exact` of the taught questions."""
    run = build(tmp_path / "run")
    path = run / "before_after" / "results.json"
    value = json.loads(path.read_text())
    value["forgetting"].append({"model": "n-gram", "heldout_bits_per_byte": bits, "difference": bits - 1.305})
    value["rows"].append({"model": "n-gram", "set": "taught", "examples": 185, "exact_match": exact})
    value["asked"]["n-gram"] = "Kneser-Ney 5-gram over 251174 tokens"
    path.write_text(json.dumps(value))
    return Page(write(run).read_text(encoding="utf-8")).text


def test_an_ngram_that_predicts_better_is_explained(tmp_path: Path) -> None:
    text = _with_ngram(tmp_path, 1.35, 0.02)
    assert "The n-gram predicts the held-out text better (1.350 bits per byte) than chat (1.400)." in text
    assert "it has 2 % exactly right, chat 64 %. How it was counted: Kneser-Ney 5-gram over 251174 tokens." in text
    assert "improved" not in text, "a baseline neither forgot nor improved"


def test_an_ngram_that_predicts_worse_is_not(tmp_path: Path) -> None:
    assert "predicts the held-out text better" not in _with_ngram(tmp_path, 1.5, 0.02)


def test_an_ngram_that_answers_as_well_is_not_called_a_mere_table(tmp_path: Path) -> None:
    text = _with_ngram(tmp_path, 1.2, 0.9)
    assert "than base (1.305) and chat (1.400)" in text and "Looking up does not answer questions" not in text


def test_expected_and_measured_stand_side_by_side(page: tuple[str, Page]) -> None:
    text = page[1].text
    assert "20 % less than the 4.0 s expected" in text, "a stage that trains nothing"
    assert "0.4 s not known before" in text, "the estimate said why"
    assert "as expected (4 min 04 s), of the 3 stages with an estimate" in text, "the total"


def test_figures_say_what_they_count(page: tuple[str, Page]) -> None:
    text = page[1].text
    assert "every link was followed" not in text and "in phrasings that training never used" not in text
    assert "retrieval in" in text.partition("On entries it was never taught")[2].partition("The run read")[0]
