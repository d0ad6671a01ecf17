"""`luyen import FILE.bin tokenizer=FILE.bin --out FOLDER`: llama2.c's files into the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from luyen.cli.arguments import OUT_HELP, one_word, plain_command, split_words
from luyen.core.config import Config, load
from luyen.core.errors import UserError


class ImportConfig(Config):
    """Where the tokenizer is."""

    tokenizer: str
    """llama2.c tokenizer file (.bin) that belongs to the model."""


HELP = """Bring a llama2.c checkpoint (for example stories260K.bin with tok512.bin) into a Hugging Face folder.

  luyen import stories260K.bin tokenizer=tok512.bin --out stories260K"""


def command(name: str) -> click.Command:
    """The command `import`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="FILE.bin tokenizer=FILE.bin"),
        click.Option(["--out"], required=True, metavar="FOLDER", help=OUT_HELP),
    ]
    return plain_command(name, _import, HELP, params)


def _import(words: tuple[str, ...], out: str) -> None:
    plain, settings = split_words(words)
    source = Path(one_word(plain, "llama2.c file"))
    config = load(ImportConfig, _as_text(settings), "luyen import")
    for path in (source, Path(config.tokenizer)):
        if not path.is_file():
            raise UserError(f"no file {path}", fix="Check the path.")
    from luyen.core import manifest
    from luyen.models.llama2c import import_llama2c

    with manifest.new_folder(Path(out), named_by_user=True) as folder:
        import_llama2c(source, Path(config.tokenizer), folder)
        manifest.seal(folder, "model", inputs={path.name: manifest.sha256_file(path) for path in (source, Path(config.tokenizer))})
    print(out)


def _as_text(settings: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in settings.items()}
