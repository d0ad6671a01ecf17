"""Reward models: how often they are right and about what, whether they know when, and what else they go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from luyen.report.blocks import Block, Cell, Charts, Facts, Heading, Limits, Note, Section, Table
from luyen.report.curves import FIRST, SOFT, Line, draw
from luyen.report.reading import Row, Run, Stage, mapping, mappings, pick
from luyen.report.wording import clip, decimal, share, whole

CHANCE = 0.5


def reward_models(run: Run, limits: Limits) -> Section:
    """The section; without blocks where the run has no finished reward model."""
    section = Section(
        "rewards", "Reward models",
        "A reward model gives an answer a number, the larger one to the answer that people preferred. Right in half of "
        "the pairs is guessing. What people found hardly better should be hardest to tell, and length alone should not decide.",
    )  # fmt: skip
    for index, stage in enumerate(run.finished("reward")):
        found = mapping(run.value(stage.folder / "evaluation.json")) or mapping(stage.metrics.get("heldout"))
        if not found:
            section.blocks.append(Note(f"Stage {stage.name} left no measures that can be read.", "bad"))
            continue
        section.blocks.append(Heading(stage.name, f"Measured on {whole(pick(found, 'pairs'))} held-out pairs."))
        section.blocks.append(_figures(found))
        section.blocks.extend(Note(sentence, "bad") for sentence in warnings(found))
        section.blocks.append(_table(found, limits))
        if index < limits.charts:
            section.blocks.extend(_calibration(stage, found, index))
    return section


def _within(row: Row) -> str:
    half = pick(row, "interval")
    return "" if half is None else f"± {100 * half:.1f} points"


def _figures(found: Row) -> Facts:
    length, beside = mapping(found.get("length")), mapping(found.get("beside"))
    chosen = share(pick(length, "longer_was_chosen"))
    candidates: list[tuple[str, float | None, Callable[[float | None], str], str]] = [
        ("Right", pick(found, "accuracy"), share, _within(found)),
        ("The longer answer wins", pick(found, "longer_answer.accuracy"), share, "right by this rule alone"),
        ("Word counts", pick(found, "word_counts.accuracy"), share, "right by TF-IDF and logistic regression"),
        ("Prefers the longer", pick(length, "longer_wins"), share, f"people chose it in {chosen}"),
        ("Reward and length", pick(length, "correlation"), lambda value: decimal(value, 2), "correlation; 0 is none, 1 is all"),
        ("Calibration error", pick(found, "calibration.ece"), decimal, "mean distance of the odds from what was found"),
        ("Agrees with another", pick(beside, "agree"), share, f"which is right in {share(pick(beside, 'second_accuracy'))}"),
    ]  # fmt: skip
    return Facts([(label, show(value), remark) for label, value, show, remark in candidates if value is not None])


def warnings(found: Row) -> list[str]:
    """What is suspicious, in plain words."""
    sentences = []
    if found.get("falls_with_the_grade") is False:
        sentences.append(
            "Accuracy does not fall with the grade: what people found hardly better should be hardest to tell. With few pairs that is "
            "chance (see the intervals); else look at how the grades were given."
        )
    right, half = pick(found, "accuracy"), pick(found, "interval")
    longer = pick(found, "longer_answer.accuracy")
    if right is None or half is None:
        return sentences
    if right - half <= CHANCE:
        sentences.append("These pairs do not show that it is better than guessing.")
    rule = None if longer is None else max(longer, 1 - longer)
    if rule is not None and right - half <= rule:
        name = "longer" if longer == rule else "shorter"
        sentences.append(f"It is not shown to be better than the rule that the {name} answer wins ({share(rule)}).")
    return sentences


def _table(found: Row, limits: Limits) -> Table:
    rows: list[list[Cell | str]] = []
    for part, what in (("by_grade", "grade"), ("by_data_set", "data set")):
        for name, value in list(mapping(found.get(part)).items())[: limits.rows]:
            rows.append(_row(clip(str(name).replace("_", " "), 80) or "–", what, mapping(value)))
    for name, value in list(mapping(found.get("judges")).items())[: limits.rows]:
        row = mapping(value)
        own = share(pick(row, "reward_model"))
        rows.append(_row(clip(str(name), 80), f"judge; the reward model on the same pairs: {own}", {**row, "count": pick(row, "verdicts")}))
    rows.append(_row("all pairs", "", {**found, "count": pick(found, "count", "pairs")}))
    return Table(
        "Share of the pairs in which it is right, with half the width of the 95 % interval", ("Pairs", "Right", "Number"), rows, (1, 2)
    )


def _row(name: str, what: str, row: Row) -> list[Cell | str]:
    right = pick(row, "accuracy")
    return [Cell(name, what, "strong"), Cell(share(right), _within(row), share=right), whole(pick(row, "count"))]


def _calibration(stage: Stage, found: Row, index: int) -> Iterator[Block]:
    bins = [(odds, seen) for row in mappings(mapping(found.get("calibration")).get("bins"))
            if (odds := pick(row, "expected")) is not None and (seen := pick(row, "found")) is not None]  # fmt: skip
    if len(bins) < 2:
        return
    bins.sort()
    lines = [Line([0, 100], [0, 100], "as it should be", SOFT, faint=True),
             Line([100 * odds for odds, _ in bins], [100 * seen for _, seen in bins], "found", FIRST, dots=True)]  # fmt: skip
    svg = draw(lines, name=f"r{index}-calibration", x_label="% expected", y_label="% preferred", whole_x=False)
    said = f"{len(bins)} groups of pairs; " + ", ".join(f"expected {share(odds, 0)}: found {share(seen, 0)}" for odds, seen in bins) + "."
    yield Charts([(svg, "Where it says 70 % it should be right in 70 %. Below the line on the right it is too sure.", said)])
