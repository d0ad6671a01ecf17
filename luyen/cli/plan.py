"""`luyen plan RECIPE`: what a run will take, here and on devices that can be rented, before anything is paid."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from luyen.cli import plan_text as text
from luyen.cli.arguments import plain_command, split_words
from luyen.core import distributed
from luyen.core.config import dump, load
from luyen.core.errors import ConfigError, UserError, nearest
from luyen.core.host_memory import total
from luyen.engine.carbon import intensity
from luyen.engine.devices import DEVICES, Device, find
from luyen.recipe.graph import Plan, StagePlan, find_recipe, plan
from luyen.recipe.table import VERBS, load_config_class

if TYPE_CHECKING:
    from luyen.recipe.planning import Assumptions, Outline
    from luyen.recipe.probe import Probe

HELP = """Say what a recipe takes before it runs: every stage on this machine; of training stages parameters, operations and memory by
part, and on which devices they fit, in which layout, for how long, for how much energy, CO2 and money.

In place of a recipe a verb with its settings; what it reads need not be here:

  luyen plan quickstart --budget 8h
  luyen plan pretrain model.preset=llama-2-7b --vocabulary 32000 train.accumulation=128 --price 2.5

Everything but the probe is counted, not measured, on stated assumptions; see docs/plan.md."""
UNNAMED = {"pretrain": ("data", "tokenizer"), "sft": ("data",)}
"""Inputs that a plan of a verb can do without."""
MOST_NAMED, MOST = 16, 64
"""Devices tried at most where --devices names some, and else."""


def command(name: str) -> click.Command:
    """The command `plan`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, required=True, metavar="RECIPE|VERB [KEY=VALUE]..."),
        click.Option(["--budget"], metavar="NAME", help="Size from the recipe's table, for example 5m, 1h, 8h."),
        click.Option(["--devices"], metavar="NAMES", help=f"Devices to show in every number, with commas: {', '.join(DEVICES)}."),
        click.Option(["--most"], type=click.IntRange(min=1), help=f"Devices at most. Default: {MOST}, with --devices {MOST_NAMED}."),
        click.Option(["--price"], metavar="PRICE", help="Of an hour of one device: 2.5, or h100=2.5,a100=1.2."),
        click.Option(["--mfu"], type=float, default=0.4, show_default=True, help="Share of a device's peak that is reached."),
        click.Option(["--carbon"], metavar="GRAMS", help="CO2 of a kWh in grams, or a country such as FRA (needs the extra carbon)."),
        click.Option(["--pue"], type=float, default=1.0, show_default=True, help="Energy of the data centre for one kWh of its computers."),
        click.Option(["--vocabulary"], type=click.IntRange(min=1), help="Tokens of a tokenizer that is not here."),
        click.Option(["--probe"], is_flag=True, help="Measure 20 steps of each training stage here, in one process, on random tokens."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
    ]
    return plain_command(name, _plan, HELP, params)


def _plan(words: tuple[str, ...], budget: str | None, vocabulary: int | None, probe: bool, as_json: bool, **stated: Any) -> None:
    """Check the words, count, print; of several processes the main one does."""
    if not distributed.is_main():
        return
    made = _read(words, budget)
    checked = _checked(**stated)
    from luyen.recipe.planning import NOT_COUNTED, Assumptions, outline

    assumptions = Assumptions(**checked)
    found = outline(made, assumptions, vocabulary or 0)
    probes, refused = _probes(made, found) if probe else ({}, {})
    if as_json:
        print(json.dumps({**_as_dict(made, found, probes, assumptions), "not_probed": refused}))
        return
    title = f"{made.name}{f', budget {made.budget}' if made.budget else ''}"
    lines = [*text.wrapped(f"{title}: {made.about}" if made.about else title, "", ""), "", *text.here(found.here, total())]
    for name, item in found.trainings.items():
        lines += ["", *text.counted(item)]
        lines += text.probed(probes[name]) if name in probes else []
        lines += text.wrapped(f"no probe: {refused[name]}") if name in refused else []
        lines += ["", *text.table(item, bool(stated["devices"]), "" if made.name == item.verb else f"{name}.")]
    for name, writing in found.evaluations.items():
        lines += ["", *text.wrapped(f"{name}: evaluate, {text.written(writing)}", "")]
    if found.trainings:
        lines += ["", *text.legend(assumptions, tuple(found.trainings.values()), NOT_COUNTED)]
    print("\n".join(line.rstrip() for line in lines))


def _read(words: tuple[str, ...], budget: str | None) -> Plan:
    """The plan of a recipe, or of a verb as a recipe of one stage."""
    plain, settings = split_words(words)
    if len(plain) != 1:
        raise UserError("give one recipe or verb", found=f"{len(plain)} words", fix="`luyen recipes` lists what can be run by name.")
    verb = plain[0]
    if verb not in VERBS:
        return plan(find_recipe(verb), settings, budget)
    if budget is not None:
        raise ConfigError("--budget", found=budget, expected="a recipe; a verb has no budgets")
    values = {name: "-" for name in UNNAMED.get(verb, ())} | settings
    checked = load(load_config_class(verb), values, f"luyen plan {verb}")
    stage = StagePlan(verb, verb, checked, ())
    return Plan(verb, VERBS[verb].help, 0, "", (stage,), {"stages": {verb: {"do": verb, **dump(checked)}}})


def _checked(devices: str | None, most: int | None, price: str | None, mfu: float, carbon: str | None, pue: float) -> dict[str, Any]:
    """What the user states, as fields of `Assumptions`. Raises ConfigError for what cannot be."""
    chosen = find(devices) if devices is not None else DEVICES
    if not 0 < mfu <= 1:
        raise ConfigError("--mfu", found=mfu, expected="a share above 0 and at most 1, such as 0.4")
    if not 1 <= pue < float("inf"):
        raise ConfigError("--pue", found=pue, expected="1 or more")
    return {
        "devices": chosen, "mfu": mfu, "prices": _prices(price, chosen), "pue": pue,
        "intensity": intensity(carbon) if carbon is not None else None,
        "most": most or (MOST if devices is None else MOST_NAMED),
    }  # fmt: skip


def _prices(given: str | None, devices: dict[str, Device]) -> dict[str, float]:
    """Device -> price, from "2.5" for every one or "h100=2.5,a100=1.2"."""
    prices: dict[str, float] = {}
    for part in given.split(",") if given is not None else ():
        name, named, amount = part.rpartition("=")
        if named and name.strip() not in devices:
            raise ConfigError(f"--price: {name.strip()!r} is not among the devices", fix=nearest(name.strip(), devices))
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ConfigError("--price", found=repr(part), expected="a number such as 2.5, or h100=2.5,a100=1.2")
        prices |= {name.strip(): value} if named else dict.fromkeys(devices, value)
    return prices


def _probes(made: Plan, found: Outline) -> tuple[dict[str, Probe], dict[str, str]]:
    """A probe of every training stage whose size is known, and of those that cannot train here why there is none."""
    from luyen.recipe.estimate import counts_gpu
    from luyen.recipe.probe import STEPS, Trial, probe

    probes: dict[str, Probe] = {}
    refused: dict[str, str] = {}
    for stage in made.stages:
        item, predicted = found.trainings.get(stage.name), found.here[stage.name]
        if item is None or predicted.seconds is None:
            continue
        config: Any = stage.config
        try:
            trial = Trial.of(config, item.training.model)
            if not counts_gpu(config.train) and trial.bytes > total():
                found_bytes, room = f"{text.size(trial.bytes)} predicted in one process", f"at most {text.size(total())}"
                raise UserError(
                    f"--probe: {stage.name} does not fit this machine", found=found_bytes, expected=room, fix="Leave out --probe."
                )
            print(f"probing {stage.name}: {STEPS} steps on random tokens, about {text.duration(trial.seconds)}", file=sys.stderr)
            probes[stage.name] = probe(config, item.training.model, predicted.seconds)
        except ConfigError as error:
            refused[stage.name] = str(error)
    return probes, refused


def _as_dict(made: Plan, found: Outline, probes: dict[str, Probe], assumptions: Assumptions) -> dict[str, Any]:
    return {
        "name": made.name, "budget": made.budget,
        "assumed": {"mfu": assumptions.mfu, "prices": dict(assumptions.prices), "pue": assumptions.pue,
                    "co2_grams_per_kwh": assumptions.intensity, "most_devices": assumptions.most},
        "this_machine": {name: item.as_dict() for name, item in found.here.items()},
        "training": {name: item.as_dict() for name, item in found.trainings.items()},
        "evaluations": {name: item.as_dict() for name, item in found.evaluations.items()},
        "probes": {name: item.as_dict() for name, item in probes.items()},
    }  # fmt: skip
