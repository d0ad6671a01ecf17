"""`luyen export CHECKPOINT tokenizer=FOLDER --out FOLDER`: a checkpoint, also one of many processes, as one Hugging Face folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import click

from luyen.cli.arguments import OUT_HELP, field_help, one_word, plain_command, program, split_words
from luyen.cli.unfinished import RECIPE, verbs_of
from luyen.core.config import Config, Input, load, read_yaml


class ExportConfig(Config):
    """What belongs to the weights, and which of them."""

    tokenizer: Input = ""
    """Folder of the tokenizer; empty: that of `model`."""
    model: Input = ""
    """Model that the training began with: for frozen weights, and for checkpoints that do not tell their model's size."""
    weights: Literal["last", "average"] = "last"
    """last: those that training goes on from; average: the ones that optimizer.ema_decay followed."""


HELP = """Turn a training checkpoint into one Hugging Face folder, whether one process wrote it or many wrote their shards.

  luyen export runs/mine/base tokenizer=runs/mine/tokenizer --out model

Takes a folder step-..., or the newest valid one of a stage. Every file is verified first."""


def command(name: str) -> click.Command:
    """The command `export`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="CHECKPOINT tokenizer=FOLDER"),
        click.Option(["--out"], metavar="FOLDER", help=OUT_HELP),
    ]
    return plain_command(name, _export, HELP + "\n\n" + field_help(ExportConfig), params)


def suggestion(source: Path) -> str:
    """The command that exports a checkpoint, or the newest of a stage or of each stage of a run; "" where no checkpoint is.

    The tokenizer is the one that the run's recipe names for the stage, where there is a run.
    """
    if (source / RECIPE).is_file():
        commands = [suggestion(source / name) for name in verbs_of(source) if any((source / name / "checkpoints").glob("step-*"))]
        return " or ".join(commands)
    if not ((source / "state.json").is_file() or any(source.glob("step-*")) or any((source / "checkpoints").glob("step-*"))):
        return ""
    tokenizer, stage = "FOLDER", source
    for _ in range(3):  # step-..., checkpoints, the stage itself
        if (stage.parent / RECIPE).is_file():
            tokenizer = _tokenizer_of(stage) or tokenizer
            break
        stage = stage.parent
    return f"{program()} export {shlex.quote(str(source))} tokenizer={shlex.quote(tokenizer)} --out exported"


def _tokenizer_of(stage: Path) -> str:
    """Where the tokenizer of a stage lies: of the run's stage that made it, or with the model that it began with."""
    verbs, stages = verbs_of(stage.parent), read_yaml(stage.parent / RECIPE)["stages"]
    values = stages.get(stage.name) or {}
    value = str(values.get("tokenizer") or values.get("model") or "")
    folder = stage.parent / value if value in verbs else Path(value)
    return str(folder / "model" if (folder / "model" / "tokenizer.json").is_file() else folder) if value else ""


def _export(words: tuple[str, ...], out: str | None) -> None:
    plain, settings = split_words(words)
    source = Path(one_word(plain, "checkpoint"))
    config = load(ExportConfig, settings, "luyen export")
    from luyen.core import manifest
    from luyen.core.errors import ConfigError, UserError
    from luyen.engine import export
    from luyen.models import hf
    from luyen.tokenizer.load import Tokenizer

    suggested = suggestion(source)
    if (source / RECIPE).is_file():
        what = "a stage of it that has checkpoints" if suggested else "a run with a stage that has checkpoints"
        raise UserError(f"{source} is a run", expected=what, fix=f"Write: {suggested}" if suggested else "")
    fix = f"Write: {suggested}" if suggested else "Add it."
    if not (config.tokenizer or config.model):
        raise ConfigError("luyen export needs a tokenizer", expected="tokenizer=FOLDER, or model=FOLDER that has one", fix=fix)
    if out is None:
        raise ConfigError("luyen export needs a folder to make", expected="--out FOLDER", fix=fix)
    manifest.check_replaceable(Path(out))
    tokenizer = Tokenizer.load(Path(config.tokenizer or config.model))
    found = export.find(source)
    model = export.model_of(found, hf.load(config.model) if config.model else None, config.weights == "average")
    with manifest.new_folder(Path(out), named_by_user=True) as folder:
        hf.save(model, folder, bos_id=tokenizer.bos_id, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
        tokenizer.save(folder)
        made = {"checkpoint": manifest.content_fingerprint(manifest.read(found.folder))}
        manifest.seal(folder, "model", inputs=made, step=found.state["step"], weights=config.weights)
    print(out)
