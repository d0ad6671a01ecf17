"""Several stages that tune the same model: what each learned, what it forgot and what it cost, on one table and two drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luyen.report.answers import forgetting, results
from luyen.report.blocks import Cell, Charts, Limits, Note, Section, Table
from luyen.report.curves import Point, scatter
from luyen.report.reading import Run, Stage, mapping, number, pick, text
from luyen.report.wording import counted, decimal, duration, joined, share, size, whole

LEARNED = "taught"
"""The set of questions that tells whether a task was learned: its taught entries in words that no model has seen."""
CLOSE = 0.05
"""Ways whose share of right answers is so little below the best one's count as equally good."""


@dataclass(frozen=True)
class Way:
    """One stage that tuned the common model."""

    stage: Stage
    label: str
    trained: float | None
    """Weights."""
    bytes: float | None
    """Of what it wrote."""
    learned: float | None
    """Share of the task's questions that it answers exactly."""
    other: float | None
    """The same share of the other tasks' questions, less what the common model has."""
    forgot: float | None
    """Bits per byte of held-out text, less those of the common model; above zero is forgotten."""

    @property
    def seconds(self) -> float | None:
        """Time of the stage."""
        return pick(self.stage.manifest, "seconds")

    @property
    def peak(self) -> float | None:
        """Most memory of the process."""
        return pick(self.stage.manifest, "peak_bytes")


@dataclass(frozen=True)
class Measured:
    """What the run's evaluations say of its models, by name of the stage."""

    right: dict[str, dict[str, float]]
    """Evaluation -> model's stage -> share that is exactly right."""
    bits: dict[str, float]
    asks: dict[str, str]
    """Evaluation -> the stage whose questions it asks."""


def ways_to_tune(run: Run, limits: Limits) -> Section:
    """The section; without blocks where fewer than two stages tuned the same model or none of them by an adapter."""
    section = Section(
        "tuning", "Ways to tune",
        "The same model tuned in several ways. What a way learned is its share of exact answers about taught entries, asked in words that "
        "no model has seen. What it forgot is measured against the model before: other tasks that it could do, and held-out text.",
    )  # fmt: skip
    start, ways = compared(run)
    if not ways:
        return section
    section.blocks.append(_table(ways[: limits.rows], start))
    section.blocks.extend(_charts(ways))
    section.blocks.extend(Note(sentence) for sentence in advice(ways))
    return section


def compared(run: Run) -> tuple[str, list[Way]]:
    """The model that was tuned in several ways, one of them an adapter, and the ways; none where there is nothing to compare."""
    start, stages = _alike(run)
    if len(stages) < 2 or not any(pick_text(stage, "adapter", "method") not in ("", "full") for stage in stages):
        return start, []
    measured, task = _measured(run), _task(stages)
    return start, [_way(run, stage, start, measured, task) for stage in stages]


def best_learned(run: Run) -> tuple[Way, str, int] | None:
    """Of the ways that were asked about their task the one that learned most, the first of equals; the model before; how many they are."""
    start, ways = compared(run)
    asked = [way for way in ways if way.learned is not None]
    return (max(asked, key=lambda way: way.learned or 0.0), start, len(asked)) if len(asked) > 1 else None


def pick_text(stage: Stage, part: str, key: str) -> str:
    """A text in a section of a stage's config."""
    return text(mapping(stage.config.get(part)).get(key))


def _alike(run: Run) -> tuple[str, list[Stage]]:
    """The model that most finished stages tuned, and they."""
    by_start: dict[str, list[Stage]] = {}
    for stage in run.finished("model"):
        start = text(stage.config.get("model")) or text(stage.config.get("base"))
        if start:
            by_start.setdefault(start, []).append(stage)
    return max(by_start.items(), key=lambda item: len(item[1]), default=("", []))


def _data(stage: Stage) -> list[str]:
    value = stage.config.get("data")
    return [text(item) for item in value] if isinstance(value, list) else [text(value)]


def _task(stages: Sequence[Stage]) -> set[str]:
    """The data that all of them were tuned on; what only some had is there against forgetting."""
    return set.intersection(*(set(_data(stage)) for stage in stages))


def _measured(run: Run) -> Measured:
    measured = Measured({}, {}, {})
    for stage in run.finished("evaluation"):
        models = {name: text(value) for name, value in mapping(stage.config.get("models")).items()}
        right = {models[row.model]: value for row in results(run, stage)
                 if row.set == LEARNED and row.model in models and (value := row.number("exact_match")) is not None}  # fmt: skip
        if right:
            measured.right[stage.name], measured.asks[stage.name] = right, text(stage.config.get("questions"))
        for row in forgetting(run, stage):
            bits = number(row.get("heldout_bits_per_byte"))
            if bits is not None and text(row.get("model")) in models:
                measured.bits.setdefault(models[text(row.get("model"))], bits)
    return measured


def _way(run: Run, stage: Stage, start: str, measured: Measured, task: set[str]) -> Way:
    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    own = [right[stage.name] for name, right in measured.right.items() if measured.asks[name] in task and stage.name in right]
    others = [right[stage.name] - right[start] for name, right in measured.right.items()
              if measured.asks[name] not in task and stage.name in right and start in right]  # fmt: skip
    bits = measured.bits
    files = [path for folder in ("adapter", "model") for path in (stage.folder / folder).glob("*.safetensors")]
    return Way(
        stage, _label(stage), stage.number("trained", "parameters"), sum(path.stat().st_size for path in files) or None,
        mean(own), mean(others), bits[stage.name] - bits[start] if stage.name in bits and start in bits else None,
    )  # fmt: skip


def _label(stage: Stage) -> str:
    """How the stage tuned, in words."""
    method = pick_text(stage, "adapter", "method") or "full"
    bits = text(stage.config.get("quantize"))
    more = len(_data(stage)) - 1
    parts = [method, f"on {bits}" if bits not in ("", "none") else "", f"with {counted(more, 'other task')} mixed in" if more else ""]
    return " ".join(part for part in parts if part)


def _table(ways: Sequence[Way], start: str) -> Table:
    best = max((way.learned for way in ways if way.learned is not None), default=None)
    rows: list[list[Cell | str]] = []
    for number_, way in enumerate(ways, 1):
        tone = "good" if best is not None and way.learned is not None and way.learned >= best - CLOSE else ""
        rows.append([
            Cell(f"{number_}  {way.stage.name}", way.label), whole(way.trained), size(way.bytes),
            Cell(share(way.learned), tone=tone, share=way.learned), _signed(way.other, 100, 1, " points", rising=True),
            _signed(way.forgot, 1, 3, "", rising=False), size(way.peak), duration(way.seconds),
        ])  # fmt: skip
    columns = ("Way", "Trained weights", "On disk", "Learned", "Other tasks", "Held-out text", "Most memory", "Time")
    caption = (
        f"All began as {start}. Other tasks: exact answers after less before. Held-out text: bits per byte after less before, above zero "
        "is forgotten. Most memory is that of the process; what earlier stages freed is given back before, libraries that they loaded stay"
    )
    return Table(caption, columns, rows, numeric=range(1, 8))


def _signed(value: float | None, times: float, digits: int, unit: str, rising: bool) -> Cell:
    if value is None:
        return Cell("–")
    good = value >= 0 if rising else value <= 0
    return Cell(f"{value * times:+.{digits}f}{unit}", tone="" if abs(value) * times < 10.0**-digits else "good" if good else "bad")


def _charts(ways: Sequence[Way]) -> list[Charts]:
    """Learned against trained weights, and against what was forgotten; a way is its number in the table."""
    numbered = list(enumerate(ways, 1))
    size_points = [Point(way.trained, 100 * way.learned, str(place)) for place, way in numbered
                   if way.trained and way.learned is not None]  # fmt: skip
    cost_points = [Point(way.forgot, 100 * way.learned, str(place)) for place, way in numbered
                   if way.forgot is not None and way.learned is not None]  # fmt: skip
    items = []
    if len(size_points) > 1:
        drawn = scatter(size_points, name="tuning-size", x_label="trained weights", y_label="% exactly right", logarithmic=True)
        told = "Few weights are enough where a point far to the left is as high as those on the right."
        items.append((drawn, told, "the table's figures"))
    if len(cost_points) > 1:
        drawn = scatter(cost_points, name="tuning-forgot", x_label="bits per byte forgotten", y_label="% exactly right")
        items.append((drawn, "The best ways are high and to the left: learned much, forgot little.", "the table's figures"))
    return [Charts(items)] if items else []


def advice(ways: Sequence[Way]) -> list[str]:
    """What the figures say to take, in plain words; empty where nothing was evaluated."""
    known = [way for way in ways if way.learned is not None]
    if not known:
        return []
    best = max(way.learned or 0.0 for way in known)
    close = [way for way in known if (way.learned or 0.0) >= best - CLOSE]
    told = [f"Best on the task, within {100 * CLOSE:.0f} points of {share(best)}: {joined([way.stage.name for way in close])}."]
    chosen = []
    for what, value in (("fewest trained weights", "trained"), ("least forgotten text", "forgot"), ("shortest", "seconds")):
        found = [(amount, way) for way in close if (amount := getattr(way, value)) is not None]
        if found:
            amount, way = min(found, key=lambda item: item[0])
            shown = {"trained": whole(amount), "forgot": decimal(amount) + " bits per byte", "seconds": duration(amount)}[value]
            chosen.append(f"{what}: {way.stage.name} ({shown})")
    if len(close) > 1 and chosen:
        told.append(f"Of these {'; '.join(chosen)}.")
    told.append(
        "Where memory is short take an adapter on a base in 4 bits; where many tasks share one model, adapters, which leave it as it is; "
        "where the task is far from all that the model knows and memory is there, all weights, with old tasks mixed in."
    )
    return told
