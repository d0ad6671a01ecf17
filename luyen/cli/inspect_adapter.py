"""`luyen inspect model=DIR adapter.method=...`: what would be trained, and what it costs, before anything is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luyen.adapters.config import READ, AdapterConfig, Quantization
from luyen.core import progress
from luyen.core.errors import ModelError
from luyen.report.wording import counted, share, size, whole

if TYPE_CHECKING:
    from torch import nn

    from luyen.adapters.esft import Choice
    from luyen.data.loader import Batch
    from luyen.models.transformer import Transformer

NUMBER = re.compile(r"\.\d+(?=\.|$)")
"""The place of a module in a list of layers or experts."""
EXPERT = re.compile(r"(.*\.experts\.\d+)\.")
LEARNED = "learned positions"


def show_adapter(
    model: str, config: AdapterConfig, quantize: Quantization, tokens: Sequence[str] = (), rows: Sequence[Batch] = ()
) -> None:  # fmt: skip
    """Print the modules that would be trained, with counts and memory. Raises ConfigError where the adapter does not fit the model.

    The model is read as names and shapes alone; for `esft` with `rows` of data in whole, to measure which experts they choose.
    """
    from luyen.adapters import files
    from luyen.adapters.adapt import adapt, trained_of_all
    from luyen.adapters.esft import mark, mark_most
    from luyen.adapters.new_tokens import grow, train_rows
    from luyen.core.folders import model_in
    from luyen.engine import cost
    from luyen.engine.config import OptimizerConfig
    from luyen.models import hf
    from luyen.recipe.estimate import FROZEN_BYTES
    from luyen.tokenizer.load import Tokenizer

    folder = model_in(model) or Path(model)
    if files.is_adapter(folder):
        raise ModelError(f"{folder} is an adapter", expected="the model that another one is to be put on",
                         fix=f"Its base is {files.base_of(folder)}.")  # fmt: skip
    made = hf.load(str(folder), "meta")
    new = range(0)
    if tokens:
        vocabulary = Tokenizer.load(hf.locate(str(folder))).with_tokens(tokens).vocab_size
        new = range(vocabulary - len(tokens), vocabulary)
        grow(made, new.start, new.stop)
    whole_model = sum(parameter.numel() for parameter in made.parameters())
    if config.method == "esft":
        if rows:
            measured = hf.load(str(folder))
            if tokens:
                grow(measured, new.start, new.stop)
            mark(made, _told_choice(measured, config, rows))
        else:
            mark_most(made, config.experts)
            progress.say("the data decides which experts are trained: name it beside the model to see them. Counted here: as many of each "
                         "layer as can be at most")  # fmt: skip
    adapt(made, config.model_copy(update={"lora": config.lora.model_copy(update={"init": "default"})}))
    if config.method != "full":
        train_rows(made, new)
    _print_groups(made)
    trained, everything = trained_of_all(made)
    parts = cost.parameters(made.config)
    frozen = 4.0 * whole_model - (4 - FROZEN_BYTES[quantize]) * (parts.attention + parts.feed_forward)
    state = cost.AdapterCost(trained).state_bytes(OptimizerConfig())
    if config.method == "full":
        state = cost.state_bytes(parts, OptimizerConfig())
    added = 0 if config.method in ("full", "selective", "esft") else 4 * trained
    print(f"{config.method}: {whole(trained)} of {whole(everything)} weights are trained ({share(trained / everything, 2)})")
    print(f"memory before any activation: model {size(frozen)}, adapter {size(added)}, gradients {size(4 * trained)}, AdamW {size(state)}")
    if quantize != "none":
        print(f"the layers' matrices are held in {quantize}, {FROZEN_BYTES[quantize]:.3f} bytes a weight")
    _warn_of_frozen_experts(made, config)


def _told_choice(model: Transformer, config: AdapterConfig, rows: Sequence[Batch]) -> Choice:
    """Measure which experts the rows go to, as a stage does before it trains, and print them."""
    from luyen.adapters.esft import choose_experts, mixtures
    from luyen.models.attention import Layout

    choice = choose_experts(model, ((row.tokens_T[None], Layout.packed(row.lengths)) for row in rows), config.experts)
    print(f"experts that {counted(len(rows), 'packed row')} of the data choose, with their shares by {config.experts.by}:")
    for name, mixture in mixtures(model).items():
        chosen = choice[name]
        told = ", ".join(f"{number} ({share(part, 1)})" for number, part in chosen.items())
        print(f"  {name}: {told}: {len(chosen)} of {mixture.count}")
    return choice


def _print_groups(model: nn.Module) -> None:
    """A table of what is trained."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    groups = _groups(model)
    table.add_column("module", no_wrap=True, min_width=max(len(name) for name, *_ in groups))
    table.add_column("shape")
    for column in ("times", "trained"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, times, shapes, count in groups:
        table.add_row(name, shapes, f"{times:,}", f"{count:,}")
    Console(highlight=False).print(table)


def _groups(model: nn.Module) -> list[tuple[str, int, str, int]]:
    """Trained modules that differ in the number of their layer or expert alone: (pattern, times, shapes, numbers in all of them)."""
    from luyen.adapters.adapt import trained

    shapes = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, own = name.rpartition(".")
            shapes.setdefault(owner, []).append(f"{own} {' x '.join(map(str, parameter.shape))}")
    found: dict[tuple[str, str], list[int]] = {}
    for group in trained(model):
        pattern = NUMBER.sub(".*", group.module) or LEARNED
        found.setdefault((pattern, ", ".join(shapes[group.module])), []).append(group.count)
    return [(pattern, len(counts), shown, sum(counts)) for (pattern, shown), counts in found.items()]


def _warn_of_frozen_experts(model: nn.Module, config: AdapterConfig) -> None:
    """Say it when a mixture's experts stay as they are, which patterns of names easily leave out.

    Methods without `targets` leave them by design; a bottleneck after a whole mixture works on all of them.
    """
    from luyen.adapters.linear import adapted
    from luyen.models.moe import Mixture

    experts = {found[1] for name, _ in model.named_parameters() if (found := EXPERT.match(name))}
    moving = {found[1] for name, each in model.named_parameters() if each.requires_grad and (found := EXPERT.match(name))}
    around = any(isinstance(module.base, Mixture) for _, module in adapted(model))
    if not experts or around or "targets" not in READ[config.method]:
        return
    if not moving:
        raise ModelError("all experts of this mixture would stay frozen", found=f"targets {', '.join(config.targets)}",
                         expected="some of their maps: gate_proj, up_proj, down_proj or all-linear",
                         fix="Add them to adapter.targets, or take adapter.method=esft.")  # fmt: skip
    if experts - moving:
        progress.say(f"{counted(len(experts - moving), 'expert')} of {len(experts)} in all layers would stay frozen")
