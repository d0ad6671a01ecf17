"""Models that learned from preferences or a reward: what they were paid, how far they went, and whether the pay misled them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from luyen.report.blocks import Block, Cell, Charts, Facts, Heading, Limits, Note, Section, Table
from luyen.report.curves import FIRST, INK, SECOND, SOFT, Line, Point, draw, scatter, thin
from luyen.report.reading import ALIGNED, Run, Stage, mapping, mappings, pick, series, text
from luyen.report.wording import clip, decimal, short, whole

CURVES = {
    "reward": ("reward", "What its answers are worth to what scores them."),
    "kl": ("nats from the reference", "How far it went from the model before. Far is odd text."),
    "length": ("tokens an answer", "Answers that only grow may be paid for their length."),
    "entropy": ("entropy, nats a token", "How undecided it is. Near zero all its answers are alike."),
    "heldout_accuracy": ("share of held-out pairs", "How often it finds the preferred answer likelier, beside the model before."),
    "margin": ("chosen less rejected", "By how much its implied reward sets the preferred answer apart."),
}
"""Columns of metrics.jsonl that are drawn: their axis and what they mean."""
COLORS = (FIRST, SECOND, INK, SOFT)
BINS = 24
MOST_ANSWERS = 50_000
EVALUATIONS, PROMPTS, CHARACTERS = 4, 3, 260
"""Of the table of answers to the fixed prompts."""


def policies(run: Run, limits: Limits) -> Section:
    """The section; without blocks where no stage aligned a model."""
    section = Section(
        "policies", "Aligned models as they learned",
        "These models learned from what people or a score preferred. The reward must rise without the answers going far from the model "
        "before, growing long or becoming all alike; what it is paid for is not yet what is wanted.",
    )  # fmt: skip
    stages = [stage for stage in run.of_kind("model") if stage.verb in ALIGNED and stage.folder.is_dir()]
    for index, stage in enumerate(stages):
        section.blocks.append(Heading(f"{stage.name}: {ALIGNED[stage.verb]}"))
        if index < limits.charts:
            section.blocks.extend(_drawn(run, stage, index))
        else:
            section.blocks.append(Note("Its curves are left out to keep the page small; they are in metrics.jsonl."))
        section.blocks.extend(_answers(run, stage))
    section.blocks.extend(_distributions(run, stages))
    return section


def _drawn(run: Run, stage: Stage, index: int) -> Iterator[Block]:
    columns = series(run.rows(stage.folder / "metrics.jsonl"), "step", *CURVES)
    items: list[tuple[Markup, str, str]] = []
    figures = []
    for number, (name, (label, meaning)) in enumerate(CURVES.items()):
        x, y = columns[name]
        if y:
            figures.append((label.capitalize(), decimal(y[-1]), f"from {decimal(y[0])}"))
        if len(y) > 1:
            x_thin, y_thin, _ = thin(x, y)
            line = Line(x_thin, y_thin, color=COLORS[number % 2], dots=len(x_thin) < 40)
            svg = draw([line], name=f"p{index}-{name}", x_label="step", y_label=label)
            items.append((svg, meaning, f"From {decimal(y[0])} at step {short(x[0])} to {decimal(y[-1])} at step {short(x[-1])}."))
    if figures:
        yield Facts(figures)
    points = scores(run, stage)
    if len(points) > 1:
        items.append(_proxy(points, index))
    best = _best_of(run, stage, index)
    items += [best] if best else []
    if items:
        yield Charts(items)
    elif not figures:
        yield Note("Nothing was logged yet.")
    if hacked(points):
        yield Note(
            "On held-out questions the reward rose while the true score fell below its best: the model learns to please what scores it. "
            "Take an earlier checkpoint, raise loss.kl.beta, or mend the reward.", "bad",
        )  # fmt: skip


def scores(run: Run, stage: Stage) -> list[tuple[float, float, float]]:
    """(step, reward, true score) of every evaluation on held-out questions."""
    found = []
    for row in run.rows(stage.folder / "metrics.jsonl"):
        step, reward, score = pick(row, "step"), pick(row, "heldout_reward"), pick(row, "score")
        if step is not None and reward is not None and score is not None:
            found.append((step, reward, score))
    return found


def hacked(points: Sequence[tuple[float, float, float]]) -> bool:
    """Whether the last evaluation has more reward and a lower score than the one of the best score before it."""
    if len(points) < 2:
        return False
    best, last = max(points[:-1], key=lambda point: point[2]), points[-1]
    return last[1] > best[1] and last[2] < best[2]


def _proxy(points: Sequence[tuple[float, float, float]], index: int) -> tuple[Markup, str, str]:
    shown = [points[round(place * (len(points) - 1) / 11)] for place in range(12)] if len(points) > 12 else points
    marked = [Point(reward, score, short(step)) for step, reward, score in shown]
    svg = scatter(marked, name=f"p{index}-proxy", x_label="reward of held-out answers", y_label="true score, by step")
    said = "; ".join(f"step {short(step)}: reward {decimal(reward)}, true score {decimal(score)}" for step, reward, score in shown)
    return (
        svg,
        "Reward against what is wanted, numbers are steps. Up and right is good; right and down is a reward that is fooled.",
        said + ".",
    )


def _best_of(run: Run, stage: Stage, index: int) -> tuple[Markup, str, str] | None:
    """The maximum and the median of the reward against the number of answers, of rejection sampling."""
    rows = mappings(mapping(run.value(stage.folder / "curve.json")).get("rows"))
    found = [(count, high, middle) for row in rows if (count := pick(row, "answers")) is not None
             and (high := pick(row, "max")) is not None and (middle := pick(row, "median")) is not None]  # fmt: skip
    if len(found) < 2:
        return None
    counts = [count for count, _, _ in found]
    lines = [Line(counts, [high for _, high, _ in found], "best", FIRST, dots=len(found) < 40),
             Line(counts, [middle for _, _, middle in found], "middle", SECOND, dots=len(found) < 40)]  # fmt: skip
    svg = draw(lines, name=f"p{index}-bestof", x_label="answers to a prompt", y_label="reward")
    first, last = found[0], found[-1]
    said = (f"The best of {whole(last[0])} answers is worth {decimal(last[1])}, the middle one {decimal(last[2])}; "
            f"of {whole(first[0])} {decimal(first[1])}.")  # fmt: skip
    return svg, "What choosing can gain: the distance between the best answer and the middle one.", said


def _answers(run: Run, stage: Stage) -> Iterator[Block]:
    """The fixed prompts' answers, one evaluation beside the next."""
    found: dict[str, dict[float, str]] = {}
    for row in run.rows(stage.folder / "samples.jsonl"):
        step = pick(row, "step")
        if step is not None and isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
            found.setdefault(text(row["prompt"]), {})[step] = text(row["answer"])
    steps = sorted({step for answers in found.values() for step in answers})
    if len(steps) < 2:
        return
    last = len(steps) - 1
    picked = [steps[place] for place in sorted({round(part * last / (EVALUATIONS - 1)) for part in range(EVALUATIONS)})]
    rows: list[list[Cell | str]] = []
    for prompt, answers in list(found.items())[:PROMPTS]:
        cells = [clip(answers.get(step, "–"), CHARACTERS) if answers.get(step, "–").strip() else "(nothing)" for step in picked]
        rows.append([Cell(clip(prompt, CHARACTERS), tone="strong"), *cells])
    yield Table("The same prompts at each evaluation", ("Prompt", *(f"Step {short(step)}" for step in picked)), rows)


def rewards_of(run: Run, stage: Stage) -> list[float]:
    """Rewards of all answers that the stage drew (rejection sampling), or of its last rollout that is kept."""
    rollouts = sorted((stage.folder / "rollouts").glob("iteration-*/answers.jsonl"))
    path, key = (rollouts[-1], "score") if rollouts else (stage.folder / "drawn.jsonl", "reward")
    found = []
    for place, row in enumerate(run.rows(Path(path))):
        if place >= MOST_ANSWERS:
            break
        value = pick(row, key)
        found += [] if value is None else [value]
    return found


def _distributions(run: Run, stages: Sequence[Stage]) -> Iterator[Block]:
    """Histograms of every version's rewards over one axis, where the same thing scored them (Llama 2, figure 20)."""
    groups: dict[str, list[tuple[Stage, list[float]]]] = {}
    for stage in stages:
        rewards = rewards_of(run, stage)
        if len(rewards) > 1:
            groups.setdefault(json.dumps(mapping(stage.config.get("reward")), sort_keys=True, default=str), []).append((stage, rewards))
    for place, group in enumerate(groups.values()):
        shown = group[-len(COLORS) :]
        low, high = min(min(rewards) for _, rewards in shown), max(max(rewards) for _, rewards in shown)
        rows: list[list[Cell | str]] = []
        lines = []
        for index, (stage, rewards) in enumerate(shown):
            ordered, mean = sorted(rewards), math.fsum(rewards) / len(rewards)
            rows.append([f"{index + 1}  {stage.name}", whole(len(rewards)), decimal(mean), decimal(ordered[len(ordered) // 2])])
            if high > low:
                x, y = outline(rewards, low, high)
                lines.append(Line(x, y, str(index + 1), COLORS[index]))
        yield Heading("Rewards of every version", "Of all answers of rejection sampling, or of the last rollout; scored by the same thing.")
        yield Table("Numbers are those in the drawing", ("Version", "Answers", "Mean reward", "Middle reward"), rows, (1, 2, 3))
        if lines:
            svg = draw(lines, name=f"d{place}-rewards", x_label="reward", y_label="% of the answers", floor_zero=True, whole_x=False)
            yield Charts([(svg, "A version that is paid better lies further to the right.", "The table's figures.")])


def outline(rewards: Sequence[float], low: float, high: float) -> tuple[list[float], list[float]]:
    """A histogram's outline: edges twice, and the share of the rewards in each bin in percent."""
    counts, width = [0] * BINS, (high - low) / BINS
    for value in rewards:
        counts[min(int((value - low) / width), BINS - 1)] += 1
    x, y = [low], [0.0]
    for place, count in enumerate(counts):
        x += [low + place * width, low + (place + 1) * width]
        y += [100 * count / len(rewards)] * 2
    return [*x, high], [*y, 0.0]
