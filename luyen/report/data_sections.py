"""What happened to the data: pages, corpus, tokenizer, questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luyen.report.blocks import Block, Cell, Facts, Fold, Heading, Limits, Note, Quote, Section, Table, Tokens, filled
from luyen.report.reading import Row, Run, Stage, funnel, mapping, mappings, number, pick, text
from luyen.report.wording import clip, counted, decimal, share, size, whole

MOST_DROPPED_ROWS = 20_000
"""Rows of dropped documents that are read in search of examples; the counts come from the funnel, which has all."""


def corpus(run: Run, limits: Limits) -> Section:
    """Pages fetched, the funnel from pages to documents, and examples of what each rule dropped."""
    section = Section(
        "corpus", "From pages to text",
        "Every page goes through the same steps; what a step throws away is counted and kept, so you can check that the rules "
        "removed rubbish and not your data.",
    )  # fmt: skip
    section.blocks.extend(_pages(stage) for stage in run.finished("pages"))
    return filled(section, run, "corpus", "the funnel from pages to clean documents", lambda stage: _cleaned(run, stage, limits))


def _cleaned(run: Run, stage: Stage, limits: Limits) -> Iterator[Block]:
    facts = funnel(run, stage)
    steps = mappings(facts.get("steps"))
    yield _funnel(stage, steps, limits)
    yield from _kept(facts)
    yield from _dropped(run, stage, steps, limits)


def _pages(stage: Stage) -> Facts:
    start = stage.config.get("start")
    modules = stage.config.get("modules")
    if start == "pydoc":
        where = "Python's own documentation" + (f": {counted(len(modules), 'module')} asked for" if isinstance(modules, list) else "")
    else:
        where = f"starting from {clip(', '.join(map(str, start)) if isinstance(start, list) else text(start), 200)}" if start else ""
    items = [("Pages fetched", whole(stage.number("pages", "fetched")), where)]
    if stage.number("bytes") is not None:
        items.append(("Downloaded", size(stage.number("bytes")), "as the server sent them"))
    told = (("skipped", "Skipped", "no address was refused or failed"), ("links", "Links not followed", ""))
    for name, label, nothing in told:
        counts = counts_of(stage.metrics.get(name))
        if counts or (nothing and isinstance(stage.metrics.get(name), dict)):
            items.append((label, whole(sum(counts.values())), listed(counts, 4) or nothing))
    for name, label, remark in (("redirects", "Redirects", "followed"), ("left", "Left unvisited", "known addresses beyond the limits")):
        value = stage.number(name)
        if value:
            items.append((label, whole(value), remark))
    return Facts(items)


def counts_of(value: object) -> dict[str, float]:
    """A mapping's numbers, largest first."""
    found = {str(name): count for name, item in mapping(value).items() if (count := number(item)) is not None}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def listed(counts: dict[str, float], most: int) -> str:
    """ "too short 12, duplicate 3, 2 more reasons"."""
    shown = ", ".join(f"{clip(name, 80).replace('_', ' ')} {whole(count)}" for name, count in list(counts.items())[:most])
    return shown + (f", {counted(len(counts) - most, 'more reason')}" if len(counts) > most else "")


def _funnel(stage: Stage, steps: list[Row], limits: Limits) -> Block:
    if not steps:
        return Note(f"Stage {stage.name} left no funnel.json that can be read.", "bad")
    first_documents, first_bytes = pick(steps[0], "documents_in") or 0, pick(steps[0], "bytes_in") or 0
    rows: list[list[Cell | str]] = []
    for step in steps[: limits.rows]:
        documents, left = pick(step, "documents_in"), pick(step, "documents_out")
        lost = documents - left if documents is not None and left is not None else None
        why = listed(counts_of(step.get("dropped")), 6)
        out = pick(step, "bytes_out")
        rows.append([
            Cell(_step_name(text(step.get("step"))), tone="strong"),
            Cell(whole(documents)),
            Cell(whole(lost), tone="soft" if not lost else ""),
            Cell(whole(left), share=left / first_documents if left is not None and first_documents else None),
            Cell(size(out), f"{share(out / first_bytes, 0)} of what came in" if out is not None and first_bytes else ""),
            Cell(why or "nothing dropped", tone="" if why else "soft"),
        ])  # fmt: skip
    columns = ["Step", "In", "Dropped", "Out", "Text out", "Dropped because"]
    return Table(f"Stage {stage.name}: documents through each step", columns, rows, (1, 2, 3, 4))


STEPS = {
    "read": "read: pages with their addresses and headers",
    "extract": "extract: main text, no menus",
    "normalise": "normalise: Unicode, old encodings",
    "language": "language: wanted ones only",
    "quality": "quality rules",
    "pii": "personal data masked",
    "exact": "exact duplicates",
    "near": "near-duplicates",
}
"""The steps of curation in plain words."""


def _step_name(name: str) -> str:
    return STEPS.get(name) or clip(name, 80).replace("_", " ") or "step"


def _kept(facts: Row) -> Iterator[Block]:
    """What became of the documents that stayed: the split, masked personal data, converted encodings, languages."""
    unit = text(facts.get("heldout_unit")) or "document"
    items = []
    for name, label, remark in (("train", "To train on", ""), ("heldout", "Held out", f"by {unit}; only ever measured on")):
        side = mapping(facts.get(name))
        if side:
            items.append((label, counted(pick(side, "documents"), "text"), f"{size(pick(side, 'bytes'))} {remark}".strip()))
    for name, label, nothing in (
        ("masked", "Personal data masked", "none was found"),
        ("converted", "Old encodings converted", "none was found"),
        ("languages", "Languages", ""),
    ):
        counts = counts_of(facts.get(name))
        if name == "languages" and counts:
            items.append((label, str(len(counts)), listed(counts, 5)))
        elif isinstance(facts.get(name), dict):
            items.append((label, whole(sum(counts.values())), listed(counts, 5) or nothing))
    if items:
        yield Facts(items)
    damaged = facts.get("files_damaged")
    if isinstance(damaged, list) and damaged:
        names = ", ".join(clip(text(name), 120) for name in damaged[:5])
        yield Note(
            f"{counted(len(damaged), 'input file')} could not be read and {'was' if len(damaged) == 1 else 'were'} left out: {names}", "bad"
        )


def _dropped(run: Run, stage: Stage, steps: list[Row], limits: Limits) -> Iterator[Block]:
    files = sorted(stage.folder.glob("dropped-*.jsonl*"))
    examples, read_all = _first_of_each_rule(run, files, limits)
    if not examples:
        yield Note("No document was dropped." if read_all and steps else "No dropped document could be shown.")
        return
    how = "the first ones in the files' order" + ("" if read_all else f", among the first {whole(MOST_DROPPED_ROWS)} dropped documents")
    yield Heading("What was dropped", f"Examples for each rule: {how}; nobody chose them. All are in {stage.name}/dropped-*.")
    for rule, rows in sorted(examples.items())[: limits.groups]:
        quotes = [
            Quote(" · ".join(part for part in (text(row.get("url")) or text(row.get("id")), text(row.get("reason"))) if part),
                  clip(text(row.get("text")) or "(no text)", limits.characters))
            for row in rows
        ]  # fmt: skip
        yield Fold(f"Rule {rule}: {counted(len(quotes), 'example')}", quotes)
    if len(examples) > limits.groups:
        yield Note(f"{len(examples) - limits.groups} more rules dropped documents; they are left out here to keep the page small.")


def _first_of_each_rule(run: Run, files: list[Path], limits: Limits) -> tuple[dict[str, list[Row]], bool]:
    examples: dict[str, list[Row]] = {}
    seen = 0
    for path in files:
        for row in run.rows(path):
            if seen == MOST_DROPPED_ROWS:
                return examples, False
            seen += 1
            same = examples.setdefault(text(row.get("rule")) or "unnamed", [])
            if len(same) < limits.examples:
                same.append(row)
    return examples, True


def tokenizer(run: Run, limits: Limits) -> Section:
    """Vocabulary, fertility per language, the beginning of a text cut into tokens."""
    section = Section(
        "tokenizer", "The tokenizer",
        "The model reads pieces of words, not letters. The fewer pieces a word needs, the more text fits into its memory and the "
        "cheaper each sentence is; a language that needs many pieces is poorly served.",
    )  # fmt: skip
    return filled(
        section, run, "tokenizer", "the vocabulary and how many pieces a word needs", lambda stage: _vocabulary(run, stage, limits)
    )


def _vocabulary(run: Run, stage: Stage, limits: Limits) -> Iterator[Block]:
    vocabulary = stage.number("vocab_size") or pick(stage.config, "vocab_size")
    items = [("Vocabulary", whole(vocabulary), text(stage.config.get("kind")) or "pieces")]
    control = mapping(stage.metrics.get("control_tokens"))
    if control:
        items.append(("Control tokens", whole(len(control)), "mark turns of a conversation; no text can make them"))
    yield Facts(items)
    yield from _fertility(run, stage, limits)
    yield from _pieces(stage, limits)


def _fertility(run: Run, stage: Stage, limits: Limits) -> Iterator[Block]:
    value = run.value(stage.folder / "fertility.json")
    rows = mappings(value) or mappings(mapping(value).get("rows")) or mappings(stage.metrics.get("fertility"))
    measured = text(stage.metrics.get("measured_on"))
    if rows:
        yield Table(
            "Fertility: how many tokens the text of each language needs" + (f", measured on {clip(measured, 80)}" if measured else ""),
            ["Language", "Documents", "Text", "Words", "Tokens", "Tokens per word", "Bytes per token"],
            [
                [text(row.get("language")) or "–", whole(pick(row, "documents")), size(pick(row, "bytes")), whole(pick(row, "words")),
                 whole(pick(row, "tokens")), decimal(pick(row, "tokens_per_word"), 2), decimal(pick(row, "bytes_per_token"), 2)]
                for row in rows[: limits.rows]
            ],
            (1, 2, 3, 4, 5, 6),
        )  # fmt: skip


def _pieces(stage: Stage, limits: Limits) -> Iterator[Block]:
    """Texts cut into tokens, when the stage kept some: a list of pieces, or a list of such lists."""
    for name in ("sample", "sample_tokens", "tokens_of_sample", "samples"):
        value = stage.metrics.get(name)
        if not isinstance(value, list):
            continue
        groups = value if value and isinstance(value[0], list) else [value]
        for group in groups[: limits.examples]:
            strings = [piece for piece in group if isinstance(piece, str)] if isinstance(group, list) else []
            pieces = [clip(piece, 60).replace("\n", "↵\n") for piece in strings[: limits.characters // 4]]
            if pieces:
                yield Tokens(f"The beginning of a text as the model sees it: {counted(len(pieces), 'token')}", pieces)


def questions(run: Run, limits: Limits) -> Section:
    """How many question-answer pairs were made, which were held out, and a few of them."""
    section = Section(
        "questions", "Questions made from the text",
        "The chat model learns from question–answer pairs that are built from what the documents say, by a template, without another "
        "model. Some phrasings and some entries are held out, so that the test above asks what was never shown.",
    )  # fmt: skip
    return filled(section, run, "questions", "the question–answer pairs", lambda stage: _made(run, stage, limits))


def _made(run: Run, stage: Stage, limits: Limits) -> Iterator[Block]:
    yield from _account(stage, mapping(run.value(stage.folder / "account.json")) or stage.metrics, limits)
    yield from _pairs(run, stage, limits)


COUNTS = {
    "kinds": ("What the entries are", "Kind"),
    "train": ("Training rows by kind of question", "Question about"),
    "evaluation": ("Test questions by set and kind of question", "Set / question about"),
    "left_out": ("Left out, and why", "Reason"),
    "entries": ("Entries found in the documents (matches), kept, and why not", "Entries"),
}
"""Tables of the account of questions: caption, and what the first column names."""

NOT_A_PART = {"train": "rows", "entries": "documents"}
"""Keys of those counts that count something else than the rest."""


def _account(stage: Stage, account: Row, limits: Limits) -> Iterator[Block]:
    untaught = account.get("untaught")
    held_out = float(len(untaught)) if isinstance(untaught, list) else number(untaught)
    asked = counts_of(account.get("evaluation"))
    sets: dict[str, float] = {}
    for key, count in asked.items():
        name = key.partition("/")[0]
        sets[name] = sets.get(name, 0) + count
    items = [
        ("Entries taught", pick(account, "taught"), "the model sees these in training"),
        ("Entries held out", held_out, "never taught, only asked in the test"),
        ("Training rows", pick(account, "train.rows", "train"), "conversations, several phrasings of each entry"),
        ("Test questions", sum(asked.values()) or None, listed(sets, 6)),
    ]
    yield Facts([(label, whole(value), remark) for label, value, remark in items if value is not None])
    for name, (caption, first) in COUNTS.items():
        counts = {key: count for key, count in counts_of(account.get(name)).items() if key != NOT_A_PART.get(name)}
        total = max(counts.values(), default=0)
        if counts:
            rows: list[list[Cell | str]] = [
                [Cell(clip(key, 120).replace("_", " ")), Cell(whole(count), share=count / total if total else None)]
                for key, count in list(counts.items())[: limits.rows]
            ]
            yield Table(caption, [first, "Number"], rows, (1,))


def _pairs(run: Run, stage: Stage, limits: Limits) -> Iterator[Block]:
    shown = 0
    for path in sorted(stage.folder.glob("*.jsonl*")):
        quotes = []
        for row in run.rows(path):
            turns = mappings(row.get("messages"))
            if turns:
                label = " · ".join(str(row[key]) for key in ("id", "set", "source", "entry") if isinstance(row.get(key), str))
                said = "\n".join(f"{text(turn.get('role'))}: {text(turn.get('content'))}" for turn in turns)
                quotes.append(Quote(label, clip(said, limits.characters)))
            if len(quotes) == limits.examples or not turns:
                break
        if quotes and shown < limits.groups:
            shown += 1
            yield Fold(f"{stage.name}/{path.name}: the first {counted(len(quotes), 'row')}", quotes)


def languages(run: Run) -> list[str]:
    """Language codes of the corpus: those that the recipe keeps, else those that the tokenizer's fertility lists."""
    for stage in run.finished("corpus"):
        kept = stage.config.get("languages")
        codes = [item for item in kept if isinstance(item, str) and item.isalpha() and len(item) <= 3] if isinstance(kept, list) else []
        if codes:
            return codes
    for stage in run.finished("tokenizer"):
        value = run.value(stage.folder / "fertility.json")
        rows = mappings(value) or mappings(mapping(value).get("rows")) or mappings(stage.metrics.get("fertility"))
        codes = [code for row in rows if (code := text(row.get("language"))).isalpha() and len(code) <= 3]
        if codes:
            return codes
    return []
