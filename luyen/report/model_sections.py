"""What happened to the model: curves of every training stage, and the same prompts answered as it learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from luyen.report.blocks import Block, Cell, Charts, Exchange, Facts, Heading, Limits, Note, Quote, Section, Table, missing
from luyen.report.curves import SECOND, Line, draw, smooth, thin
from luyen.report.optimising import optimised
from luyen.report.reading import ALIGNED, TALKING, Run, Stage, mapping, number, parameters, pick, series, text
from luyen.report.watching import ending, expected_time, watched
from luyen.report.wording import clip, counted, decimal, duration, foretold, short, size, whole

Columns = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Curves:
    """What a training stage logged; every entry is the pair (steps, values)."""

    columns: Columns

    def of(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one column."""
        return self.columns[name]

    def last(self, name: str) -> float | None:
        """Its last value."""
        return self.columns[name][1][-1] if self.columns[name][1] else None

    def lowest(self, name: str) -> float | None:
        """Its lowest value."""
        return min(self.columns[name][1], default=None)


COLUMNS = ("loss", "learning_rate", "tokens", "heldout_bits_per_byte", "heldout_loss", "noise_scale")


def read_curves(run: Run, stage: Stage) -> Curves:
    """The columns of `metrics.jsonl` that the page draws or tells."""
    return Curves(series(run.rows(stage.folder / "metrics.jsonl"), "step", *COLUMNS))


def weights_of(stage: Stage) -> float | None:
    """Number of parameters, as the stage says it or as its weights have it."""
    return stage.number("parameters", "num_parameters", "model.parameters") or parameters(stage.folder / "model")


def final_loss(run: Run, stage: Stage) -> float | None:
    """The stage's own figure, else the mean of the last 20 logged steps."""
    said = stage.number("loss")
    if said is not None:
        return said
    tail = read_curves(run, stage).of("loss")[1][-20:]
    return math.fsum(tail) / len(tail) if tail else None


def tokens_of(stage: Stage) -> float | None:
    """Tokens that a training stage read."""
    said = pick(stage.manifest, "tokens")
    return said if said is not None else stage.number("tokens", "tokens_seen", "train_tokens")


def training(run: Run, limits: Limits) -> Section:
    """Loss, held-out bits per byte and learning rate of every training stage."""
    section = Section(
        "training", "How the model learned",
        "Loss is how surprised the model is by the next token: it must fall, and on held-out text too. If the held-out curve turns up "
        "while the training loss still falls, the model has begun to memorise.",
    )  # fmt: skip
    stages = run.of_kind("model")
    if not any(stage.folder.is_dir() for stage in stages):
        section.blocks.append(missing(stages, "the training curves"))
    drawn = 0
    for index, stage in enumerate(stages):
        if not stage.folder.is_dir():
            continue
        section.blocks.append(Heading(f"{stage.name}: {_purpose(stage)}"))
        curves = read_curves(run, stage)
        section.blocks.append(_figures(run, stage, curves))
        section.blocks.extend(_lengths(stage, limits))
        if drawn < limits.charts:
            drawn += 1
            section.blocks.extend(_charts(run, stage, curves, index))
        else:
            section.blocks.append(Note("Its curves are left out to keep the page small; they are in metrics.jsonl."))
    return section


def _purpose(stage: Stage) -> str:
    return {"pretrain": "reading the documents", "sft": "learning to answer", **ALIGNED}.get(stage.verb, stage.verb or "training")


def _trained(stage: Stage) -> str:
    """Which of the parameters were trained, and how."""
    count, method = stage.number("trained"), text(mapping(stage.config.get("adapter")).get("method"))
    bits = text(stage.config.get("quantize"))
    if count is None:
        return "trained"
    return f"frozen; {method} trained {whole(count)}" + ("" if bits in ("", "none") else f" on a base in {bits}")


def _figures(run: Run, stage: Stage, curves: Curves) -> Facts:
    steps = curves.of("loss")[0]
    target = pick(stage.config, "train.steps", "steps")
    rate = _median(series(run.rows(stage.folder / "timings.jsonl"), "step", "tokens_per_second")["tokens_per_second"][1])
    measured = pick(stage.manifest, "seconds")
    memory, expected = pick(stage.manifest, "peak_bytes"), pick(stage.manifest, "estimate.bytes")
    first, last = (curves.of("loss")[1][0], final_loss(run, stage)) if steps else (None, None)
    bits, best = curves.last("heldout_bits_per_byte"), decimal(curves.lowest("heldout_bits_per_byte"))
    planned = f"of {whole(target)} planned" if target and steps and steps[-1] < target else ""
    planned += f", {ending(stage)}" if planned and ending(stage) else ""
    epochs = stage.number("epochs")
    passes = f"{decimal(epochs, 1)} times through the data" if epochs is not None else ""
    candidates = [
        ("Parameters", weights_of(stage), whole, _trained(stage)),
        ("Steps", steps[-1] if steps else None, whole, planned or passes),
        ("Loss", last, lambda value: decimal(value, 3), f"from {decimal(first, 3)} at the first step" if first is not None else ""),
        ("Held-out text", bits, lambda value: decimal(value, 3), f"bits/byte; best {best}"),
        ("Tokens a second", rate, whole, "median over the steps"),
        ("Time", measured, duration, expected_time(stage) or "no estimate was kept"),
        ("Most memory", memory, size, foretold(expected, memory, size(expected))),
    ]  # fmt: skip
    shown = [(label, show(value), remark) for label, value, show, remark in candidates if value is not None]
    return Facts([*shown, *watched(run, stage), *optimised(stage, curves.last("noise_scale"))])


def _lengths(stage: Stage, limits: Limits) -> Iterator[Block]:
    """Where every row and answer token of the training data went."""
    data = mapping(stage.metrics.get("data"))
    sources = (
        {"documents": {"tokens": data}}
        if "tokens" in data and "rows" in data
        else {str(name): mapping(value) for name, value in data.items()}
    )
    rows: list[list[Cell | str]] = []
    for name, source in list(sources.items())[: limits.rows]:
        account, read = mapping(source.get("tokens")), mapping(source.get("rows"))
        if not account:
            continue
        dropped = sum(number(value) or 0 for value in mapping(account.get("dropped")).values())
        lost, rejected = pick(account, "lost"), pick(read, "rejected")
        rows.append([
            Cell(clip(name, 80), clip(text(source.get("format")), 120), "strong"), whole(pick(account, "rows")), whole(rejected),
            whole(dropped), whole(pick(account, "tokens")), whole(pick(account, "trained")), Cell(whole(lost), tone="bad" if lost else ""),
        ])  # fmt: skip
    if rows:
        columns = ["Training data", "Rows", "Malformed", "Dropped", "Tokens", "Trained on", "Lost to cuts"]
        yield Table("Where every row and token went", columns, rows, (1, 2, 3, 4, 5, 6))


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _charts(run: Run, stage: Stage, curves: Curves, index: int) -> Iterator[Block]:
    drawings: list[tuple[Markup, str, str]] = []
    steps, losses = curves.of("loss")
    if len(steps) > 1:
        drawings.append(_loss_chart(run, stage, steps, losses, index))
    for column, unit in (("heldout_bits_per_byte", "bits per byte"), ("heldout_loss", "nats per token")):
        x, y = curves.of(column)
        if len(x) > 1:
            x, y, _ = thin(x, y)
            line, said = (
                Line(x, y, color=SECOND, dots=len(x) < 40),
                f"From {decimal(y[0])} to {decimal(y[-1])} {unit}, lowest {decimal(min(y))}.",
            )
            svg = draw([line], name=f"s{index}-{column}", x_label="step", y_label=f"held-out text, {unit}")
            drawings.append((svg, "Text that the model never trained on.", said))
            break
    x, y = curves.of("learning_rate")
    if len(x) > 1:
        x, y, _ = thin(x, y)
        svg = draw([Line(x, y)], name=f"s{index}-rate", x_label="step", y_label="learning rate", floor_zero=True)
        drawings.append((svg, "How large a step the optimizer takes.", f"Highest {short(max(y))}, at the end {short(y[-1])}."))
    if drawings:
        yield Charts(drawings)
    elif stage.state != "done":
        yield Note("Too few steps were logged to draw a curve.")


def _loss_chart(run: Run, stage: Stage, steps: list[float], losses: list[float], index: int) -> tuple[Markup, str, str]:
    smoothed = thin(steps, smooth(losses))
    x, y, width = thin(steps, losses)
    sizes = [item.number("vocab_size") or pick(item.config, "vocab_size") for item in run.finished("tokenizer")]
    vocabulary = next((found for found in sizes if found), None)
    level = None
    if stage.verb == "pretrain" and vocabulary and vocabulary > 1:
        level = (math.log(vocabulary), f"guessing: ln {vocabulary:,.0f} = {math.log(vocabulary):.2f}")
    lines = [Line(x, y, "each step" if width == 1 else f"mean of {width} steps", faint=True), Line(smoothed[0], smoothed[1], "smoothed")]
    label = "training loss" if stage.verb in ALIGNED else "training loss, nats per token"
    svg = draw(lines, name=f"s{index}-loss", x_label="step", y_label=label, level=level)
    said = f"From {decimal(losses[0])} at step {short(steps[0])} to {decimal(losses[-1])} at step {short(steps[-1])}."
    return svg, "What the model trained on.", said


def samples(run: Run, limits: Limits) -> Section:
    """The fixed prompts of every training stage, answered at its first, middle and last evaluation."""
    section = Section(
        "samples", "The same prompts as it learned",
        "The model continued these fixed prompts at every evaluation, always with the same settings. Read down: babble becomes words, "
        "words become sentences, sentences become answers.",
    )  # fmt: skip
    told: dict[str, list[Quote]] = {}
    for stage in run.of_kind("model"):
        for prompt, answers in _answers(run, stage).items():
            told.setdefault(prompt, []).extend(_chosen(stage, answers, limits))
    if not told:
        section.blocks.append(missing(run.of_kind("model"), "answers to the fixed prompts"))
    # Prompts that several stages answered come first; the order is otherwise the recipe's.
    ordered = sorted(told.items(), key=lambda item: -len({quote.label.partition(",")[0] for quote in item[1]}))
    section.blocks.extend(Exchange(clip(prompt, limits.characters), quotes, "Prompt") for prompt, quotes in ordered[: limits.groups])
    if len(ordered) > limits.groups:
        more = counted(len(ordered) - limits.groups, "more prompt")
        section.blocks.append(Note(f"{more} left out to keep the page small; see samples.jsonl."))
    return section


def _answers(run: Run, stage: Stage) -> dict[str, list[tuple[float, str]]]:
    answers: dict[str, list[tuple[float, str]]] = {}
    for row in run.rows(stage.folder / "samples.jsonl"):
        step = pick(row, "step")
        if step is not None and isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
            answers.setdefault(text(row["prompt"]), []).append((step, text(row["answer"])))
    return answers


def _chosen(stage: Stage, answers: list[tuple[float, str]], limits: Limits) -> list[Quote]:
    """First, middle and last answer of a stage."""
    answers = sorted(answers, key=lambda pair: pair[0])
    picked = sorted({0, len(answers) // 2, len(answers) - 1}) if limits.examples >= 3 else [len(answers) - 1]
    quotes = []
    for step, answer in (answers[index] for index in picked):
        before = text(stage.config.get("model")) if step == 0 and stage.verb in TALKING else ""
        label = f"{stage.name}, step {short(step)}" + (f" (still {clip(before, 80)})" if before else "")
        quotes.append(Quote(label, clip(answer, limits.characters) if answer.strip() else "(nothing)"))
    return quotes
