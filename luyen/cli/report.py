"""`luyen report [RUN]`: write report.html and the model card again."""

from __future__ import annotations

from pathlib import Path

import click

from luyen.cli.arguments import last_run, one_word, plain_command
from luyen.core.errors import UserError
from luyen.report.page import write


def command(name: str) -> click.Command:
    """The command `report`."""
    text = "Write a run's report.html and model card again; without an argument, the last run's."
    return plain_command(name, _write, text, [click.Argument(["words"], nargs=-1, metavar="[RUN]")])


def _write(words: tuple[str, ...]) -> None:
    folder = Path(one_word(words, "run folder")) if words else last_run()
    if not folder.is_dir():
        raise UserError(f"no run folder {folder}", fix="Check the path.")
    print(write(folder))
