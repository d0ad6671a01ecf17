"""A plan as text of at most 80 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luyen.recipe.estimate import Prediction
    from luyen.recipe.planning import Assumptions, TrainingPlan, Way, Writing
    from luyen.recipe.probe import Probe

COLUMNS = 80
LARGE_WIDTH = 1024
"""Width of a model below which products are too small for a GPU's usual share of its peak."""


def duration(seconds: float) -> str:
    """With the unit that suits it: 0.3 s, 12 s, 3.1 min, 4.5 h, 21 d, 3.2 y."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"), (1000 * 86_400, 86_400, "d")):
        if seconds < limit:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / (365.25 * 86_400))} y"


def number(value: float) -> str:
    """Two digits and no more than a reader needs, at most seven characters: <0.001, 0.31, 5.2, 47, 12,345, 1.2M."""
    if value >= 999_999.5:
        return f"{value / 1e6:,.1f}M" if value < 99_950_000 else f"{value / 1e6:,.0f}M"
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}" if value >= 0.001 else "<0.001" if value else "0"


def size(bytes_: float) -> str:
    """Bytes with a unit: 3 kB, 61 MB, 4.2 GB."""
    for limit, scale, unit in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if bytes_ < limit:
            return f"{number(bytes_ / scale)} {unit}"
    return f"{number(bytes_ / 1e12)} TB"


def wrapped(text: str, first: str = "  ", rest: str = "  ") -> list[str]:
    """A paragraph within the columns."""
    return textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)


def here(predictions: Mapping[str, Prediction], limit: float) -> list[str]:
    """Every stage on this machine; `limit` is its memory in bytes."""
    wide = max(5, *(len(name) for name in predictions))
    lines = ["on this machine", f"  {'stage':<{wide}} {'time':>8} {'memory':>8}  what is counted"]
    for name, item in predictions.items():
        taken = "?" if item.seconds is None else duration(item.seconds)
        memory = "?" if item.bytes is None or item.seconds is None else size(item.bytes)
        start = f"  {name:<{wide}} {taken:>8} {memory:>8}  "
        much = item.seconds is not None and (item.bytes or 0) > limit
        lines += wrapped(f"{item.told}{f'; does not fit, here are {size(limit)}' if much else ''}", start, " " * min(len(start), 24))
    known = [item for item in predictions.values() if item.seconds is not None]
    if len(predictions) > 1 and known:
        total, most = sum(item.seconds or 0.0 for item in known), max(item.bytes or 0 for item in known)
        missing = "" if len(known) == len(predictions) else "  without the stages marked ?"
        lines.append(f"  {'all':<{wide}} {duration(total):>8} {size(most):>8}{missing}")
    return lines


def probed(probe: Probe, predicted: Prediction) -> list[str]:
    """What a probe measured, beside what was predicted."""
    told = (
        f"probe of {probe.steps} steps on this machine: {duration(probe.step_seconds)} a step, so {duration(probe.seconds)} for the stage"
        f" (predicted {duration(predicted.seconds or 0.0)}); peak memory {size(probe.bytes)} (predicted {size(probe.expected_bytes)} for "
        "the stage alone)"
    )
    return wrapped(told)


def counted(plan: TrainingPlan) -> list[str]:
    """A training stage: parameters, operations and memory by part, and advice."""
    facts = plan.as_dict()
    weights, forward = facts["parameters"], facts["operations_per_token_forward"]
    batch = plan.training.batch
    of_step = f"{plan.steps:,} steps of {batch.rows * batch.accumulation} rows of {batch.length:,} tokens"
    lines = [
        *wrapped(f"{plan.stage}: {plan.verb}, {plan.tokens:,} tokens ({of_step})", ""),
        f"  {'':<24}{'parameters':>18}{'FLOP a token':>18}",
    ]
    rows = [
        ("embedding", weights["embedding"], 0.0), ("attention's projections", weights["attention"], forward["projections"]),
        ("attention's scores", 0, forward["scores"]), ("feed-forward", weights["feed_forward"], forward["feed_forward"]),
        ("norms", weights["norms"], 0.0), ("head" if weights["head"] else "head: the embedding", weights["head"], forward["head"]),
        ("together", weights["total"], sum(forward.values())),
    ]  # fmt: skip
    lines += [
        f"  {name:<24}{count or '-':>18,}{3 * done or 0:>18,.0f}" if count else f"  {name:<24}{'-':>18}{3 * done:>18,.0f}"
        for name, count, done in rows
    ]
    lines += wrapped(f"FLOP: forward and backward; {plan.operations:.3g} for the stage.")
    lines += memory(facts, plan.verb == "sft")
    cache, context = facts["cache_bytes_per_token"], plan.training.model.context_length
    lines += wrapped(f"key-value cache of the finished model: {size(cache)} a token, {size(cache * context)} for {context:,} tokens")
    lines += wrapped(f"samples at an evaluation: {written(plan.samples)}") if plan.samples else []
    return lines + (wrapped(plan.advice) if plan.advice else [])


def memory(facts: Mapping[str, Any], with_lora: bool) -> list[str]:
    """Memory by part on one GPU as the recipe says, beside what an adapter would take."""
    columns = [facts["memory_one_device"], *([facts["memory_one_device_lora"]] if with_lora else [])]
    lora = facts["lora_parameters"]
    names = ["as it says", *([f"LoRA, rank {lora['rank']}"] if with_lora else [])]
    lines = [f"  {'memory on one GPU':<24}" + "".join(f"{name:>18}" for name in names)]
    for part in columns[0]:
        name = {"total": "together", "cache": "key-value cache"}.get(part, part)
        lines.append(f"  {name:<24}" + "".join(f"{size(column[part]) if column[part] else '-':>18}" for column in columns))
    if with_lora:
        share = lora["count"] / facts["parameters"]["total"]
        told = f"LoRA of rank {lora['rank']} on all projections would train {lora['count']:,} parameters ({share:.1%})"
        lines += wrapped(told)
    return lines


def written(item: Writing) -> str:
    """What a stage writes, and what keys and values take while it does."""
    context, full = item.model.context_length, item.tokens == item.model.context_length
    rest = "" if full else f"; {size(item.most)} if each had all {context:,}"
    return (
        f"{item.rows} at a time, answers of at most {item.new_tokens:,} tokens; their key-value cache {size(item.bytes)} "
        f"at {item.tokens:,} tokens a row{' (the whole context)' if full else ''}{rest}"
    )


def table(plan: TrainingPlan, every: bool, prefix: str) -> list[str]:
    """The devices: of each the fewest that fit, of the cheapest, or of all when `every`, each number. `prefix` stands before settings."""
    best = plan.cheapest
    chosen: list[Way] = []
    for way in plan.ways:
        if every or best is not None and way.device == best.device or way.device not in {item.device for item in chosen}:
            chosen.append(way)
    head = f"  {'device':<9}{'n':>4}  {'layout':<9} {'kept, rows':<13}{'memory':>7}{'time':>9}{'kWh':>8}{'kg CO2':>8}{'money':>8}"
    lines = [head] if chosen else []
    for way in chosen:
        axes = [f"{count}{name[0]}" for name, count in vars(way.layout).items() if count > 1] or ["-"]
        layout = " ".join(axes) if len(" ".join(axes)) < 10 else "".join(axes)
        kept = f"{way.part.activations} {way.part.batch.rows}"
        line = f"{'*' if way is best else ' '} {way.device:<9}{way.layout.devices:>4}  {layout:<9} {kept:<13}"
        line += f"{size(way.bytes):>7}{duration(way.seconds):>9}{number(way.kwh):>8}"
        lines.append(line + "".join(f"{'-' if amount is None else number(amount):>8}" for amount in (way.kilograms, way.money)))
    for name, why in plan.refused.items():
        lines += wrapped(f"{name:<10}{why}", "  ", " " * 12)
    return lines + ([] if best is None else _best(plan, best, prefix))


def _best(plan: TrainingPlan, best: Way, prefix: str) -> list[str]:
    """What the star means, and the settings that make the run so."""
    least = "the least money" if best.money is not None else "the least energy (without --price)"
    words = shlex.join(f"{prefix}{word}" for word in best.settings(plan.training))
    launched = f", by torchrun with {best.layout.devices} processes" if best.layout.devices > 1 else ""
    waits = f"; a pipeline's devices wait {best.bubble:.0%} of the time for each other, which is counted" if best.bubble else ""
    return wrapped(f"* {least}; to run it so: {words or 'as the recipe says'}{launched}{waits}")


def legend(assumptions: Assumptions, trainings: Sequence[TrainingPlan], not_counted: str) -> list[str]:
    """What the tables assume and leave out."""
    prices, grams = set(assumptions.prices.values()), assumptions.intensity
    given = [f"PUE {assumptions.pue:g}"] + ([] if grams is None else [f"{grams:g} g CO2 a kWh"])
    given += [f"{prices.pop():g} an hour for every device"] if len(prices) == 1 and len(assumptions.prices) > 1 else []
    told = [
        f"Assumed: {assumptions.mfu:.0%} of the data sheet's peak (--mfu), recomputed work included; the most power a device may take; "
        f"{', '.join(given)}.",
        "Layout: d groups of equal weights, s shards of a group, t devices a layer, c devices a row, p stages of layers; rows at a time "
        "on each device. Memory is on each device, an upper bound; 1 GB and 5 % of it are left free.",
        f"Not counted: {not_counted}.",
    ]
    if any(plan.training.model.hidden_size < LARGE_WIDTH for plan in trainings):
        told.append(f"A model narrower than {LARGE_WIDTH} does not keep a GPU busy: expect far less than {assumptions.mfu:.0%} there.")
    return [line for text in told for line in wrapped(text, "", "")]
