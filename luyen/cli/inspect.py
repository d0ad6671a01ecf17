"""`luyen inspect DATA [model=DIR]`: what a data set would teach, before it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from luyen.cli.arguments import field_help, one_word, plain_command, split_words, working
from luyen.core.config import Config, Input, load
from luyen.core.errors import DataError
from luyen.data.config import ReadConfig

HELP = """Show rows of a data set as the model will see them ({+trained+}, context, [-cut-]), the detected format and an account
of every token. Fails (exit code 2) when a row trains on nothing or never trains the end of a turn.

Without a model only the format and the rows are shown. Settings:"""


class InspectConfig(Config):
    """What to look at."""

    model: Input | None = None
    """Folder whose tokenizer and chat template are used: a model, a tokenizer, or a stage of a run."""
    rows: int = 3
    """Rows to show."""
    length: int = 512
    """Longest row in tokens."""
    truncation: Literal["drop", "truncate"] = "drop"
    """drop or truncate: what happens to longer rows."""
    read: ReadConfig = ReadConfig()
    """How the files are read."""
    rejected: str | None = None
    """File that keeps malformed rows byte for byte."""


def command(name: str) -> click.Command:
    """The command `inspect`."""
    params: list[click.Parameter] = [click.Argument(["words"], nargs=-1, required=True, metavar="DATA [KEY=VALUE]...")]
    return plain_command(name, _inspect, f"{HELP}\n\n{field_help(InspectConfig)}", params)


def _inspect(words: tuple[str, ...]) -> None:
    plain, settings = split_words(words)
    config = load(InspectConfig, settings, "luyen inspect")
    data = one_word(plain, "data file or folder")
    with working():
        _show(data, config)


def _show(data: str, config: InspectConfig) -> None:
    from rich.console import Console

    from luyen.data.formats import read

    console = Console(highlight=False)
    dataset = read(data, config.read, rejected=Path(config.rejected) if config.rejected else None)
    if not dataset.records:
        raise DataError(f"{data} holds no usable row", fix="Look at what was rejected above.")
    if config.model is None:
        from luyen.data.inspect import record_text

        for record, origin in list(zip(dataset.records, dataset.origins, strict=True))[: config.rows]:
            console.print(record_text(record, origin))
        print("Name a model=FOLDER to see tokens and what is trained on.")
        return
    from luyen.data.inspect import inspect
    from luyen.tokenizer.load import Tokenizer

    folder = Path(config.model)
    tokenizer = Tokenizer.load(folder / "model" if (folder / "model" / "tokenizer.json").is_file() else folder)
    inspection = inspect(dataset, tokenizer, config.length, config.truncation, show=config.rows)
    for row in inspection.rows:
        console.print(row.text())
    for line in inspection.summary():
        print(line)
    if not inspection.ok:
        raise DataError(
            f"{len(inspection.problems)} rows would teach nothing or not how to stop", found=inspection.problems[0],
            fix="Mend or remove them, or raise length.",
        )  # fmt: skip
