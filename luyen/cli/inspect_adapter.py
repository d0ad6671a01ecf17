"""`luyen inspect model=DIR adapter.method=...`: what would be trained, and what it costs, before anything is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from luyen.adapters.config import AdapterConfig, Quantization
from luyen.core import progress
from luyen.core.errors import ModelError
from luyen.report.wording import counted, share, size, whole

if TYPE_CHECKING:
    from torch import nn

NUMBER = re.compile(r"\.\d+(?=\.|$)")
"""The place of a module in a list of layers or experts."""
LEARNED = "learned positions"


def show_adapter(model: str, config: AdapterConfig, quantize: Quantization) -> None:
    """Print the modules that would be trained, with counts and memory. Raises ConfigError where the adapter does not fit the model.

    The model is read as names and shapes alone.
    """
    from rich.console import Console
    from rich.table import Table

    from luyen.adapters import files
    from luyen.adapters.adapt import adapt
    from luyen.adapters.esft import mark_most
    from luyen.core.folders import model_in
    from luyen.engine import cost
    from luyen.engine.config import OptimizerConfig
    from luyen.models import hf
    from luyen.recipe.estimate import FROZEN_BYTES

    folder = model_in(model) or Path(model)
    if files.is_adapter(folder):
        raise ModelError(f"{folder} is an adapter", expected="the model that another one is to be put on",
                         fix=f"Its base is {files.base_of(folder)}.")  # fmt: skip
    made = hf.load(str(folder), "meta")
    whole_model = sum(parameter.numel() for parameter in made.parameters())
    if config.method == "esft":
        mark_most(made, config.experts)
        progress.say("which experts are trained the stage's data decides; counted here: as many of each layer as can be at most")
    adapt(made, config.model_copy(update={"lora": config.lora.model_copy(update={"init": "default"})}))
    table = Table(box=None, header_style="bold")
    groups = _groups(made)
    table.add_column("module", no_wrap=True, min_width=max(len(name) for name, *_ in groups))
    table.add_column("shape")
    for column in ("times", "trained"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, times, shapes, count in groups:
        table.add_row(name, shapes, f"{times:,}", f"{count:,}")
    Console(highlight=False).print(table)
    trained = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    parts = cost.parameters(made.config)
    frozen = 4.0 * whole_model - (4 - FROZEN_BYTES[quantize]) * (parts.attention + parts.feed_forward)
    state = cost.AdapterCost(trained).state_bytes(OptimizerConfig())
    if config.method == "full":
        state = cost.state_bytes(parts, OptimizerConfig())
    added = 0 if config.method in ("full", "selective", "esft") else 4 * trained
    print(f"{config.method}: {whole(trained)} of {whole(whole_model)} weights are trained ({share(trained / whole_model, 2)})")
    print(f"memory before any activation: model {size(frozen)}, adapter {size(added)}, gradients {size(4 * trained)}, AdamW {size(state)}")
    if quantize != "none":
        print(f"the layers' matrices are held in {quantize}, {FROZEN_BYTES[quantize]:.3f} bytes a weight")
    _warn_of_frozen_experts(made, config)


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
    """Say it when a mixture's experts stay as they are, which patterns of names easily leave out."""
    experts = {name for name, _ in model.named_parameters() if ".experts." in name}
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad and ".experts." in name}
    if not experts or config.method in ("full", "selective", "esft"):
        return
    if not moving:
        raise ModelError("all experts of this mixture would stay frozen", found=f"targets {', '.join(config.targets)}",
                         expected="some of their maps: gate_proj, up_proj, down_proj or all-linear",
                         fix="Add them to adapter.targets, or take adapter.method=esft.")  # fmt: skip
    named = {re.sub(r".*\.experts\.(\d+)\..*", r"\1", name) for name in experts}
    tuned = {re.sub(r".*\.experts\.(\d+)\..*", r"\1", name) for name in moving}
    if named - tuned:
        progress.say(f"{counted(len(named - tuned), 'expert')} of {len(named)} stay frozen in every layer")
