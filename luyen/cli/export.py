"""`luyen export CHECKPOINT tokenizer=FOLDER --out FOLDER`: a checkpoint, also one of many processes, as one Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from luyen.cli.arguments import OUT_HELP, field_help, one_word, plain_command, split_words
from luyen.core.config import Config, Input, load


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
        click.Option(["--out"], required=True, metavar="FOLDER", help=OUT_HELP),
    ]
    return plain_command(name, _export, HELP + "\n\n" + field_help(ExportConfig), params)


def _export(words: tuple[str, ...], out: str) -> None:
    plain, settings = split_words(words)
    source = Path(one_word(plain, "checkpoint"))
    config = load(ExportConfig, settings, "luyen export")
    from luyen.core import manifest
    from luyen.core.errors import ConfigError
    from luyen.engine import export
    from luyen.models import hf
    from luyen.tokenizer.load import Tokenizer

    manifest.check_replaceable(Path(out))
    if not (config.tokenizer or config.model):
        raise ConfigError("luyen export needs a tokenizer", expected="tokenizer=FOLDER, or model=FOLDER that has one", fix="Add it.")
    tokenizer = Tokenizer.load(Path(config.tokenizer or config.model))
    found = export.find(source)
    model = export.model_of(found, hf.load(config.model) if config.model else None, config.weights == "average")
    with manifest.new_folder(Path(out), named_by_user=True) as folder:
        hf.save(model, folder, bos_id=tokenizer.bos_id, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
        tokenizer.save(folder)
        made = {"checkpoint": manifest.content_fingerprint(manifest.read(found.folder))}
        manifest.seal(folder, "model", inputs=made, step=found.state["step"], weights=config.weights)
    print(out)
