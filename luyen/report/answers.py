"""The evaluation: the before/after table, forgetting, and answers that nobody picked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from luyen.report.blocks import Block, Cell, Exchange, Group, Heading, Limits, Note, Quote, Section, Table, filled
from luyen.report.reading import Row, Run, Stage, mapping, mappings, number, pick, text
from luyen.report.wording import clip, counted, decimal, joined, share, whole

WITH_PAGES = "with pages"
"""Ends the name of a model in the rows where it was given the best passage before each question."""

MOST_ANSWERS = 100_000
"""Rows of answers.jsonl that are read in search of examples."""

SHARES = {
    "exact_match": "Exactly right",
    "f1": "Words in common (F1)",
    "invented": "Invented an answer",
    "said_unknown": "Admitted not knowing",
    "stopped": "Stopped by itself",
}
"""Measures that are shares, and how a person calls them."""

NGRAM = "n-gram"
"""The name of the baseline that counts sequences of tokens."""

ORDER = ("exact_match", "f1", "chrf", "invented", "said_unknown", "stopped")
"""Measures from left to right; others follow."""

SETS = {
    "taught": "Taught entries, asked in words it has not seen",
    "untaught": "Entries it was never taught",
    "invented": "Names that do not exist",
    "training": "Questions it was trained on, word for word",
}
"""What each set of questions asks."""


@dataclass(frozen=True)
class Result:
    """One row of results: a model on a set of questions."""

    model: str
    set: str
    values: Row

    def number(self, name: str) -> float | None:
        """One of its measures."""
        return pick(self.values, name)


def results(run: Run, stage: Stage) -> list[Result]:
    """Rows of an evaluation stage, from results.json or else its metrics."""
    value = _facts(run, stage)
    return [Result(text(row.get("model")) or "–", text(row.get("set")) or "–", row) for row in mappings(value.get("rows"))]


def forgetting(run: Run, stage: Stage) -> list[Row]:
    """Rows of the forgetting table."""
    return mappings(_facts(run, stage).get("forgetting"))


def _facts(run: Run, stage: Stage) -> Row:
    return mapping(run.value(stage.folder / "results.json")) or stage.metrics


def trained_models(run: Run, stage: Stage, found: Sequence[Result]) -> list[str]:
    """Names of the models in the rows that are stages (not baselines), in the evaluation's order."""
    named = list(mapping(stage.config.get("models")))
    stages = {item.name for item in run.of_kind("model")}
    order = list(dict.fromkeys(row.model for row in found))
    return [name for name in order if name in named or name in stages]


def ways(found: Sequence[Result], model: str) -> dict[str, str]:
    """Row -> how to ask like that, for a model that was asked with and without passages; empty where it was asked in one way only."""
    if not any(row.model == f"{model} {WITH_PAGES}" for row in found):
        return {}
    return {model: "alone: luyen chat --no-retrieval", f"{model} {WITH_PAGES}": "as luyen chat asks"}


def evaluation(run: Run, limits: Limits) -> Section:
    """Every model on every set, held-out text before and after, and answers side by side."""
    section = Section(
        "results", "Before and after",
        "The same questions to every model and to simple baselines. A model that only looks good on questions it was trained on "
        "has learned by heart; one that answers for names that do not exist makes things up. “Exactly right” disregards capitals and "
        "punctuation; small figures below a share are its 95 % interval.",
    )  # fmt: skip
    return filled(section, run, "evaluation", "the comparison of the models", lambda stage: _compared(run, stage, limits))


def _compared(run: Run, stage: Stage, limits: Limits) -> Iterator[Block]:
    found = results(run, stage)
    if not found and not forgetting(run, stage):
        yield Note(f"Stage {stage.name} left no results that can be read.", "bad")
        return
    yield from _tables(run, stage, found, limits)
    yield from _forgotten(run, stage, found, limits)
    yield from _side_by_side(run, stage, trained_models(run, stage, found), limits)


def set_name(name: str) -> str:
    """A set in plain words."""
    return SETS.get(name, name.replace("_", " "))


def _tables(run: Run, stage: Stage, found: list[Result], limits: Limits) -> Iterator[Block]:
    learned = trained_models(run, stage, found)
    folded: list[Table] = []
    for name in list(dict.fromkeys(row.set for row in found))[: limits.groups]:
        made = _table(set_name(name), [row for row in found if row.set == name][: limits.rows], learned)
        if name == "training":
            folded.append(made)
        else:
            yield made
    facts = _facts(run, stage)
    kinds = [Result(set_name(text(row.get("set"))), text(row.get("source")), row) for row in mappings(facts.get("by_source"))
             if learned and row.get("model") == learned[-1]]  # fmt: skip
    if len({row.set for row in kinds}) > 1:
        folded.append(_table(f"The answers of {learned[-1]} by kind of question", kinds[: limits.rows], [], ("Questions", "About")))
    asked = [[clip(name, 80), clip(text(note), 300)] for name, note in mapping(facts.get("asked")).items()]
    if asked:
        folded.append(Table("How each of them was asked", ["Model", "How"], asked[: limits.rows]))
    if folded:
        yield Group("More tables: questions from the training data, kinds of question, how each was asked", folded)


def _table(caption: str, rows: list[Result], learned: list[str], first: tuple[str, ...] = ("Model",)) -> Table:
    """One row a result: who (and about what), how many questions, and every measure with its 95 % interval where there is one."""
    named = {key for row in rows for key in row.values if key != "examples" and row.number(key) is not None}
    if "invented" not in named and not any(row.number("said_unknown") for row in rows):
        named.discard("said_unknown")
    measures = [key for key in ORDER if key in named] + sorted(named - set(ORDER))[:6]
    asked = ways(rows, learned[-1]) if learned else {}
    cells: list[list[Cell | str]] = []
    for row in rows:
        baseline = bool(learned) and not any(row.model == name or row.model.startswith(f"{name} ") for name in learned)
        remark = "baseline" if baseline else asked.get(row.model, "")
        head = [Cell(clip(row.model, 80), remark, "strong")] + [Cell(clip(row.set, 80).replace("_", " "))] * (len(first) - 1)
        cells.append([*head, whole(row.number("examples")), *(_value(key, row) for key in measures)])
    columns = [*first, "Asked", *map(_measure_name, measures)]
    return Table(caption, columns, cells, tuple(range(len(first), len(columns))))


def _measure_name(key: str) -> str:
    return SHARES.get(key) or ("Similar letters (chrF)" if key == "chrf" else clip(key.replace("_", " "), 40))


def _value(key: str, row: Result) -> Cell:
    value = row.number(key)
    if value is None:
        return Cell("–", tone="soft")
    interval = mapping(row.values.get("intervals")).get(key)
    low, high = (number(interval[0]), number(interval[1])) if isinstance(interval, list) and len(interval) == 2 else (None, None)
    certain = low is None or high is None or low == high
    if key in SHARES and 0 <= value <= 1:
        note = "" if certain else f"{decimal(100 * (low or 0), 1)} to {decimal(100 * (high or 0), 1)}"
        return Cell(share(value), note, "bad" if key == "invented" and value > 0.5 else "", value)
    digits = 1 if key == "chrf" else 3
    return Cell(decimal(value, digits), "" if certain else f"{decimal(low, digits)} to {decimal(high, digits)}")


def _forgotten(run: Run, stage: Stage, found: list[Result], limits: Limits) -> Iterator[Block]:
    rows, learned = forgetting(run, stage), trained_models(run, stage, found)
    if not rows:
        return
    cells: list[list[Cell | str]] = []
    for index, row in enumerate(rows[: limits.rows]):
        name, difference = text(row.get("model")) or "–", pick(row, "difference") if index else None
        baseline = bool(learned) and name not in learned
        tone = "" if baseline or not difference else "bad" if difference > 0 else "good"
        cells.append([
            Cell(name, "baseline" if baseline else "", "strong"), decimal(_cost(row)),
            Cell("–" if difference is None else f"{difference:+.3f}", "" if baseline else _forgetting_words(difference), tone),
        ])  # fmt: skip
    told = "Held-out documents in bits per byte, lower is better: a rise means that the model forgot part of what it had read."
    yield Heading("What fine-tuning cost", told)
    yield Table("Forgetting", ["Model", "Bits per byte", "Against the first"], cells, (1, 2))
    note = _beaten(rows, learned, text(mapping(_facts(run, stage).get("asked")).get(NGRAM)), found)
    if note is not None:
        yield note


def _cost(row: Row) -> float | None:
    return pick(row, "heldout_bits_per_byte", "bits_per_byte")


def _beaten(rows: list[Row], learned: list[str], how: str, found: list[Result]) -> Note | None:
    """What it means when the n-gram predicts held-out text better than a model does; None when it does not."""
    costs = {text(row.get("model")): cost for row in rows if (cost := _cost(row)) is not None}
    its = costs.get(NGRAM)
    worse = [f"{clip(name, 80)} ({decimal(costs[name])})" for name in learned if its is not None and costs.get(name, its) > its]
    if NGRAM in learned or not worse:
        return None
    told = (
        f"The n-gram predicts the held-out text better ({decimal(its)} bits per byte) than {joined(worse)}. That is no contradiction: this "
        "text is narrow, held-out pieces repeat phrases of the pages beside them, and an n-gram keeps every short sequence that it has "
        "counted and looks up what followed, while a small model must press the text into its weights."
    )
    exact = {row.model: row.number("exact_match") for row in found if row.set == "taught"}
    last, own = exact.get(learned[-1]), exact.get(NGRAM)
    if last is not None and own is not None and own < last:
        rates = f"{share(own, 0)} exactly right, {clip(learned[-1], 80)} {share(last, 0)}"
        told += f" Looking up does not answer questions: of the taught ones it has {rates}."
    return Note(told + (f" How it was counted: {clip(how, 200)}." if how else ""))


def _forgetting_words(difference: float | None) -> str:
    if difference is None:
        return ""
    return "unchanged" if abs(difference) < 0.0005 else "forgot" if difference > 0 else "improved"


def _side_by_side(run: Run, stage: Stage, models: list[str], limits: Limits) -> Iterator[Block]:
    asked = _asked(run, stage)
    judge = models[-1] if models else None
    if not asked or judge is None:
        return
    yield Heading(
        "Answers side by side",
        f"For each set, up to {limits.examples} questions that {judge} answered well and up to {limits.examples} that it did not, taken in "
        "the order of the sha256 of their ids, so nobody chose them. The tables above give the shares.",
    )
    for index, name in enumerate(list(dict.fromkeys(key[0] for key in asked))[: limits.groups]):
        ordered = sorted((key for key in asked if key[0] == name), key=lambda key: _hash(key[1]))
        well = [key for key in ordered if verdict(asked[key].get(judge, {}))[0] == "good"]
        badly = [key for key in ordered if key not in set(well)]
        chosen = well[: limits.examples] + badly[: limits.examples]
        word = "answered exactly" if any(text(row.get("expected")) for row in asked[ordered[0]].values()) else "admitted not to know"
        summary = f"{set_name(name)}: {len(chosen)} of {counted(len(ordered), 'question')}; {judge} {word} {len(well)}"
        yield Group(summary, [_exchange(asked[key], models, limits) for key in chosen], opened=index == 0)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()


def _asked(run: Run, stage: Stage) -> dict[tuple[str, str], dict[str, Row]]:
    """(set, id) -> model -> its row."""
    asked: dict[tuple[str, str], dict[str, Row]] = {}
    for count, row in enumerate(run.rows(stage.folder / "answers.jsonl")):
        if count == MOST_ANSWERS:
            break
        key = (text(row.get("set")) or "–", str(row.get("id", "")))
        asked.setdefault(key, {})[text(row.get("model"))] = row
    return asked


def verdict(row: Row) -> tuple[str, str]:
    """(tone, word) on an answer; to a question without an answer only an admission is good."""
    if text(row.get("expected")):
        exact = pick(row, "exact_match") == 1.0
        return ("good", "exact") if exact else ("bad", "not exact")
    if pick(row, "said_unknown") == 1.0:
        return "good", "admitted"
    return ("bad", "invented") if pick(row, "invented") == 1.0 else ("", "")


def _exchange(rows: Mapping[str, Row], models: list[str], limits: Limits) -> Exchange:
    first = next(iter(rows.values()))
    expected = text(first.get("expected"))
    quotes = [Quote("the page says", clip(expected, limits.characters), "soft")] if expected else []
    for name in models + [name for name in rows if name not in models]:
        row = rows.get(name)
        if row is not None:
            stopped = pick(row, "stopped") != 0.0 and row.get("stopped") is not False
            label = clip(name, 80) if stopped else f"{clip(name, 80)} (did not stop by itself)"
            quotes.append(Quote(label, clip(text(row.get("answer")) or "(nothing)", limits.characters), *verdict(row)))
    return Exchange(clip(text(first.get("question")), limits.characters), quotes, "Question")
