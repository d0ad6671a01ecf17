"""The run as a whole: stages with their time, tokens and energy; recipe, versions and lineage."""

from __future__ import annotations

import json

from luyen.core.manifest import content_fingerprint
from luyen.report.answers import results
from luyen.report.blocks import Block, Cell, Code, Limits, Note, Section, Table
from luyen.report.model_sections import final_loss, tokens_of, weights_of
from luyen.report.reading import ENVIRONMENT, RECIPE, TALKING, Run, Stage, documents, mapping, number, pick, text
from luyen.report.watching import expected_seconds, expected_time
from luyen.report.wording import carbon, clip, counted, decimal, duration, energy, foretold, moment, share, size, whole

STATES = {"done": "done", "failed": "failed", "stopped": "not finished", "waiting": "not begun"}


def stages(run: Run, limits: Limits) -> Section:
    """One row per stage, a total, and what happened when."""
    section = Section(
        "stages", "What was done",
        "Each stage takes what the one before it made. Below each time and each memory stands what was expected before the work began, so "
        "you can see how far to trust an estimate for a longer run.",
    )  # fmt: skip
    longest = max((pick(stage.manifest, "seconds") or 0 for stage in run.stages), default=0)
    columns = ["Stage", "Result", "Time", "Tokens", "Loss", "Peak memory", "Energy"]
    rows = [_row(run, stage, longest) for stage in run.stages[: limits.rows]]
    if not rows:
        section.blocks.append(Note("The recipe has no stage that can be read.", "bad"))
        return section
    rows.append(_total(run))
    section.blocks.append(Table("Stages in the order in which they ran", columns, rows, (2, 3, 4, 5, 6), totals=True))
    if all(pick(stage.manifest, "joules") is None for stage in run.stages):
        section.blocks.append(Note("Energy could not be measured: this machine gives no power counter that an ordinary user may read."))
    section.blocks.extend(_events(run, limits))
    return section


def _row(run: Run, stage: Stage, longest: float) -> list[Cell | str]:
    seconds = pick(stage.manifest, "seconds")
    memory, expected = pick(stage.manifest, "peak_bytes"), pick(stage.manifest, "estimate.bytes")
    unforeseen = "not known before" if "counted" in mapping(stage.manifest.get("estimate")) else ""
    trained = stage.kind == "model"
    result = outcome(run, stage)
    if stage.state != "done":
        result = STATES[stage.state].capitalize() + (f": {clip(stage.error, 300)}" if stage.error else "")
    return [
        Cell(stage.name, stage.verb, "strong"),
        Cell(result, "" if stage.planned or not run.recipe else "left from an earlier recipe", "" if stage.state == "done" else "bad"),
        Cell(
            duration(seconds),
            expected_time(stage) or unforeseen,
            share=seconds / longest if seconds and longest else None,
        ),
        Cell(whole(tokens_of(stage)) if trained else "–"),
        Cell(decimal(final_loss(run, stage)) if trained else "–"),
        Cell(size(memory), foretold(expected, memory, size(expected)) if memory else ""),
        Cell(energy(pick(stage.manifest, "joules")), carbon(pick(stage.manifest, "grams_co2"))),
    ]


def _total(run: Run) -> list[Cell | str]:
    def summed(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    done = sum(stage.state == "done" for stage in run.stages)
    peaks = [peak for stage in run.stages if (peak := pick(stage.manifest, "peak_bytes")) is not None]
    return [
        Cell("Total", tone="strong"),
        Cell(f"{done} of {counted(len(run.stages), 'stage')} done", tone="" if done == len(run.stages) else "bad"),
        Cell(duration(summed([pick(stage.manifest, "seconds") for stage in run.stages])), _expected_together(run)),
        Cell(whole(summed([tokens_of(stage) for stage in run.of_kind("model")]))),
        Cell("–"),
        Cell(size(max(peaks, default=None)), "highest" if peaks else ""),
        Cell(energy(summed([pick(stage.manifest, "joules") for stage in run.stages]))),
    ]


def _expected_together(run: Run) -> str:
    """All stages that had an estimate, expected beside measured; of a training that ended early the steps that were done."""
    both = [(expected_seconds(stage), pick(stage.manifest, "seconds")) for stage in run.stages]
    known = [(expected, measured) for expected, measured in both if expected is not None and measured is not None]
    if not known:
        return ""
    expected, measured = sum(pair[0] for pair in known), sum(pair[1] for pair in known)
    told = foretold(expected, measured, duration(expected))
    return told if len(known) == len(run.stages) or not told else f"{told}, of the {counted(len(known), 'stage')} with an estimate"


def outcome(run: Run, stage: Stage) -> str:
    """What a finished stage made, in a few words."""
    match stage.kind:
        case "pages" if (pages := stage.number("pages", "fetched")) is not None:
            return f"{counted(pages, 'page')}, {size(stage.number('bytes'))}"
        case "corpus" if (kept := documents(run, stage)[1]) is not None:
            before = documents(run, stage)[0]
            return f"{counted(kept, 'clean document')}" + (f" of {whole(before)} ({share(kept / before, 0)})" if before else "")
        case "tokenizer" if (vocabulary := stage.number("vocab_size") or pick(stage.config, "vocab_size")) is not None:
            return f"a vocabulary of {counted(vocabulary, 'piece')}"
        case "model" if (weights := weights_of(stage)) is not None:
            return f"{'a chat model' if stage.verb in TALKING else 'a base model'} of {counted(weights, 'parameter')}"
        case "questions" if (pairs := stage.number("train.rows", "train", "rows")) is not None:
            return f"{counted(pairs, 'training conversation')}"
        case "evaluation" if (asked := sum(row.number("examples") or 0 for row in results(run, stage))) > 0:
            return f"{counted(asked, 'answer')} graded"
    return text(stage.metrics.get("summary")) or (f"{stage.kind or 'result'} written")


def _events(run: Run, limits: Limits) -> list[Block]:
    rows: list[list[Cell | str]] = [
        [moment(event.get("time")) or "–", text(event.get("stage")) or "the run", text(event.get("event")),
         Cell(clip(next((text(event.get(key)) for key in ("error", "message", "reason") if text(event.get(key))), ""), 200), tone="soft")]
        for event in run.events[-limits.rows :]
    ]  # fmt: skip
    interrupted = [event for event in run.events if event.get("event") in ("interrupted", "resumed", "failed")]
    if not interrupted:
        return []
    cut = f"; the last {len(rows)} of {len(run.events)}" if len(run.events) > len(rows) else ""
    return [Table(f"What happened when (the run did not go through in one piece{cut})", ["Time", "Stage", "Event", "Remark"], rows)]


def recipe(run: Run, limits: Limits) -> Section:
    """The exact recipe, the versions and the fingerprint of every result."""
    section = Section(
        "recipe", "Exactly how to repeat it",
        "With this recipe, these versions and this seed, the same machine makes the same bytes again. The fingerprints tell whether two "
        "runs really had the same inputs.",
    )  # fmt: skip
    section.blocks.append(_versions(run, limits))
    lineage: list[list[Cell | str]] = []
    for stage in run.stages[: limits.rows]:
        if stage.manifest:
            inputs = ", ".join(f"{name} {text(value)[:12]}" for name, value in mapping(stage.manifest.get("inputs")).items())
            content, seed = result_fingerprint(stage)[:12] or "–", str(stage.manifest.get("seed", "–"))[:30]
            cells = (content, clip(inputs, 300) or "nothing", seed)
            lineage.append([Cell(stage.name, tone="strong"), *(Cell(value, tone="code") for value in cells)])
    if lineage:
        columns = ["Stage", "Its content", "Made from", "Seed"]
        section.blocks.append(Table("What was made of what (first 12 digits of sha256)", columns, lineage))
    if run.recipe_text:
        shown_recipe = clip(run.recipe_text, limits.code)
        section.blocks.append(Code(f"The recipe with every default written out ({RECIPE})", shown_recipe, folded=True))
    else:
        section.blocks.append(Note(f"The run has no {RECIPE} that can be read.", "bad"))
    if run.environment:
        shown = json.dumps(run.environment, indent=2, ensure_ascii=False, default=str)
        section.blocks.append(Code(f"The machine and its software ({ENVIRONMENT})", clip(shown, limits.code // 2), folded=True))
    return section


def versions_of(run: Run) -> dict[str, str]:
    """Package -> version, from the environment or from the newest manifest that has them."""
    found = mapping(run.environment.get("versions"))
    for stage in run.stages:
        found = found or mapping(stage.manifest.get("versions"))
    return {str(name): str(value) for name, value in found.items()}


def result_fingerprint(stage: Stage) -> str:
    """Hash of what the stage's folder holds; "" when its manifest lists no files."""
    try:
        return content_fingerprint(stage.manifest)
    except (KeyError, TypeError, AttributeError, ValueError):
        return ""


def _versions(run: Run, limits: Limits) -> Table:
    rows: list[list[Cell | str]] = []
    seed = run.recipe.get("seed")
    if seed is not None:
        rows.append(["seed", Cell(str(seed)[:40], tone="code")])
    for name in ("platform", "machine", "processors", "threads", "device", "gpu"):
        value = run.environment.get(name)
        if isinstance(value, str) and value or number(value) is not None:
            rows.append([name, Cell(str(value)[:200], tone="code")])
    main = versions_of(run)
    first = [name for name in ("luyen", "python", "torch") if name in main]
    rows += [[name, Cell(main[name][:80], tone="code")] for name in first + [name for name in main if name not in first][: limits.rows]]
    return Table("Seed, machine and versions", ["What", "Value"], rows or [["nothing was recorded", "–"]])
