"""`luyen schema VERB`: the JSON schema of a verb's config."""

from __future__ import annotations

import json

import click

from luyen.cli.arguments import one_word, plain_command
from luyen.core.errors import ConfigError, nearest
from luyen.recipe.table import VERBS, load_config_class


def command(name: str) -> click.Command:
    """The command `schema`."""
    params: list[click.Parameter] = [click.Argument(["words"], nargs=-1, metavar="VERB")]
    return plain_command(name, _print, "Print the JSON schema of a verb's config, for editors.", params)


def _print(words: tuple[str, ...]) -> None:
    verb = one_word(words, "verb")
    if verb not in VERBS:
        raise ConfigError(f"no verb {verb!r}", fix=nearest(verb, VERBS))
    print(json.dumps(load_config_class(verb).model_json_schema(), indent=2))
