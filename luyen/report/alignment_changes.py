"""What alignment changed: the model before beside the aligned ones, and whether chance explains the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luyen.report.answers import MOST_ANSWERS, SHARES, forgetting, results, set_name
from luyen.report.blocks import Cell, Limits, Note, Section, Table
from luyen.report.reading import ALIGNED, Row, Run, Stage, mapping, number, pick, text
from luyen.report.wording import decimal, share
from luyen.tasks.question_answering import estimate

FEW = 2
"""Questions below which no interval is told."""
LOWER_IS_BETTER = "invented"


@dataclass(frozen=True)
class Change:
    """One measure of one set, before and after, on the same questions."""

    before: str
    after: str
    set: str
    measure: str
    values: tuple[float, float]
    interval: tuple[float, float] | None
    """95 % of the difference, after less before, over the questions; None where the answers are not there to draw from."""

    @property
    def difference(self) -> float:
        """After less before."""
        return self.values[1] - self.values[0]

    @property
    def verdict(self) -> str:
        """better | worse, or "" where the interval holds zero or is not known."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "better" if (self.difference > 0) != (self.measure == LOWER_IS_BETTER) else "worse"


def alignment_changed(run: Run, limits: Limits) -> Section:
    """The section; without blocks where no evaluation has an aligned model and one that it was made from."""
    section = Section(
        "alignment", "What alignment changed",
        "Each aligned model beside the one that it was made from, on the same questions. The interval says how far the difference could be "
        "chance: questions are drawn anew, with both models' answers to them. Only where it leaves out zero is it called better or worse.",
    )  # fmt: skip
    for stage in run.finished("evaluation"):
        pairs = compared(run, stage)
        found = changes(run, stage, pairs)
        if found:
            section.blocks.append(_table(stage, found[: limits.rows]))
            section.blocks.extend(Note(sentence) for sentence in told(found))
        lost = _forgotten(run, stage, pairs)
        if lost:
            columns = ("Before", "After", "Bits per byte before", "after", "Difference")
            section.blocks.append(Table("Held-out text: above zero is forgotten", columns, lost[: limits.rows], (2, 3, 4)))
    return section


def compared(run: Run, stage: Stage) -> list[tuple[str, str]]:
    """(before, after) of an evaluation's models: each aligned one with its nearest ancestor that was asked too and is not aligned."""
    stages = {item.name: item for item in run.of_kind("model")}
    asked = {name: text(value) for name, value in mapping(stage.config.get("models")).items()}
    named = {made: name for name, made in asked.items()}
    pairs = []
    for name, made in asked.items():
        if made not in stages or stages[made].verb not in ALIGNED:
            continue
        seen, now = {made}, _start(stages[made])
        while now in stages and now not in seen and (now not in named or stages[now].verb in ALIGNED):
            seen.add(now)
            now = _start(stages[now])
        if now in named and now not in seen:
            pairs.append((named[now], name))
    return pairs


def _start(stage: Stage) -> str:
    return text(stage.config.get("model")) or text(stage.config.get("base"))


def changes(run: Run, stage: Stage, pairs: Sequence[tuple[str, str]]) -> list[Change]:
    """Of every set that both models of a pair were asked, its first measure: exact answers, words in common, invented answers."""
    if not pairs:
        return []
    rows = {(row.model, row.set): row for row in results(run, stage)}
    answers = _scores(run, stage, {name for pair in pairs for name in pair})
    found = []
    for before, after in pairs:
        for name in dict.fromkeys(item.set for item in rows.values() if item.model == after):
            if (before, name) not in rows:
                continue
            for measure in ("exact_match", "f1", "invented", "right", "chrf"):
                values = rows[before, name].number(measure), rows[after, name].number(measure)
                if values[0] is not None and values[1] is not None:
                    interval = _interval(answers, before, after, name, measure)
                    found.append(Change(before, after, name, measure, (values[0], values[1]), interval))
                    break
    return found


def _scores(run: Run, stage: Stage, models: set[str]) -> dict[tuple[str, str], dict[str, Row]]:
    """(model, set) -> question -> its answer's measures."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for place, row in enumerate(run.rows(stage.folder / "answers.jsonl")):
        if place >= MOST_ANSWERS:
            break
        if text(row.get("model")) in models:
            found.setdefault((text(row["model"]), text(row.get("set"))), {})[str(row.get("id"))] = row
    return found


def _interval(
    answers: dict[tuple[str, str], dict[str, Row]], before: str, after: str, name: str, measure: str
) -> tuple[float, float] | None:
    first, second = answers.get((before, name), {}), answers.get((after, name), {})
    both = [(pick(first[key], measure), pick(second[key], measure)) for key in first if key in second]
    differences = [new - old for old, new in both if old is not None and new is not None]
    if len(differences) < FEW:
        return None
    found = estimate(differences)
    return found.low, found.high


def _shown(value: float, measure: str) -> str:
    return share(value) if measure in SHARES or measure == "right" else decimal(value, 1)


def _difference(change: Change) -> Cell:
    times, unit = (1.0, "") if change.measure == "chrf" else (100.0, " points")
    note = "no interval: the answers are not there"
    if change.interval is not None:
        note = f"{times * change.interval[0]:+.1f} to {times * change.interval[1]:+.1f}"
    return Cell(f"{times * change.difference:+.1f}{unit}", note, {"better": "good", "worse": "bad"}.get(change.verdict, ""))


def _table(stage: Stage, found: Sequence[Change]) -> Table:
    rows: list[list[Cell | str]] = [
        [Cell(change.after, f"before: {change.before}", "strong"), Cell(set_name(change.set), SHARES.get(change.measure, change.measure)),
         _shown(change.values[0], change.measure), _shown(change.values[1], change.measure), _difference(change),
         change.verdict or "not told apart"]
        for change in found
    ]  # fmt: skip
    columns = ("Model", "Questions", "Before", "After", "Difference", "So it is")
    return Table(f"{stage.name}: small figures below a difference are its 95 % interval", columns, rows, (2, 3, 4))


def told(found: Sequence[Change]) -> list[str]:
    """A sentence on each aligned model that claims no more than the intervals allow."""
    sentences = []
    for before, after in dict.fromkeys((change.before, change.after) for change in found):
        own = [change for change in found if (change.before, change.after) == (before, after)]
        parts = []
        for verdict in ("better", "worse"):
            named = [f"“{set_name(change.set)}” ({_difference(change).text})" for change in own if change.verdict == verdict]
            parts += [f"{verdict} on {', '.join(named)}"] if named else []
        if parts:
            sentences.append(f"{after} is {' and '.join(parts)} than {before}; where nothing is named, these questions cannot tell.")
        else:
            sentences.append(f"No improvement of {after} over {before} is shown: with these questions every difference may be chance.")
    return sentences


def _forgotten(run: Run, stage: Stage, pairs: Sequence[tuple[str, str]]) -> list[list[Cell | str]]:
    bits = {text(row.get("model")): number(row.get("heldout_bits_per_byte")) for row in forgetting(run, stage)}
    rows: list[list[Cell | str]] = []
    for before, after in pairs:
        old, new = bits.get(before), bits.get(after)
        if old is not None and new is not None:
            tone = "" if abs(new - old) < 0.001 else "bad" if new > old else "good"
            rows.append([before, after, decimal(old), decimal(new), Cell(f"{new - old:+.3f}", tone=tone)])
    return rows
