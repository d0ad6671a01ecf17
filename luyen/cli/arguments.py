"""What several commands share: reading key=value words, choosing folders, listening to signals."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from luyen.core import consent, interrupt, progress
from luyen.core.config import Config, describe, parse_overrides
from luyen.core.errors import ConfigError, UserError

KEY = re.compile(r"[A-Za-z_][\w.-]*=")

OUT_HELP = "Folder to make. An earlier result there is replaced; a folder that holds anything else is refused and not touched."


def program() -> str:
    """How this program is called, for commands that a person is to type: `luyen` where the shell finds it, else the path of its script."""
    script = sys.argv[0]
    if os.path.basename(script) != "luyen" or not os.path.isfile(script):
        return "luyen"  # started in another way, for example as a module
    return _called(script)


def torchrun(launch: Mapping[str, int]) -> str:
    """The beginning of the command that starts this program in as many processes, as docs/parallel.md has it.

    `launch` is what `core.distributed.launch` gives. Several machines get the same command each, with an address that only a person knows.
    """
    machines = launch.get("machines", 1)
    script = os.path.join(os.path.dirname(sys.executable), "torchrun")
    words = [_called(script) if os.path.isfile(script) else "torchrun"]
    words += ["--standalone"] if machines == 1 else [f"--nnodes {machines}", "--rdzv-backend c10d", "--rdzv-endpoint HOST:29500"]
    words += [f"--nproc-per-node {launch['processes'] // machines}"]
    words += [f"--max-restarts {launch['restarts']}"] if launch.get("restarts") else []
    return " ".join([*words, "-m luyen.cli.main"])


def _called(script: str) -> str:
    """A script by its name where the shell finds it, else by the shorter of its paths, quoted."""
    name = os.path.basename(script)
    found = shutil.which(name)
    if found and os.path.samefile(found, script):
        return name
    near = os.path.relpath(script)
    near = near if os.sep in near else os.path.join(os.curdir, near)
    return shlex.quote(min(near, os.path.abspath(script), key=len))


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separate plain words from key=value settings. A word that names an existing path is plain."""
    plain = [word for word in words if not KEY.match(word) or os.path.exists(word)]
    return plain, parse_overrides(word for word in words if word not in plain)


def only_settings(words: Sequence[str]) -> dict[str, Any]:
    """All words as settings; ConfigError for a word that is none."""
    plain, settings = split_words(words)
    if plain:
        raise ConfigError(f"cannot read {plain[0]!r}", expected="key=value", fix="See --help for the keys.")
    return settings


def one_word(words: Sequence[str], what: str) -> str:
    """The single plain word; UserError when there is none or more."""
    if len(words) != 1:
        raise UserError(f"give one {what}", found=f"{len(words)} words")
    return words[0]


def field_help(config_class: type[Config]) -> str:
    """Every field of a config for `--help`, one paragraph of unwrapped lines."""
    lines = []
    for field in describe(config_class):
        lines.append(f"  {field.path}={field.default}" if field.default != "required" else f"  {field.path}  (required)")
        if field.help:
            lines.append(f"      {field.help}")
    return "\n".join(lines)


def data_home() -> Path:
    """Where runs go when the working folder cannot be written."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "luyen"


def runs_folder() -> Path:
    """`runs` in the working folder, or in the user's data folder when that one is read-only (then said)."""
    here = Path("runs")
    parent = here if here.exists() else Path()
    if os.access(parent, os.W_OK):
        return here
    progress.say(f"this folder is read-only; the run goes to {data_home() / 'runs'}")
    return data_home() / "runs"


def all_runs() -> list[Path]:
    """The runs here and in the user's data folder, the one worked on last first."""
    logs = [path for root in (Path("runs"), data_home() / "runs") for path in root.glob("*/events.jsonl")]
    return [path.parent for path in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True)]


def last_run() -> Path:
    """The run that was worked on last, here or in the user's data folder."""
    for run in all_runs():
        return run
    raise UserError("there is no run yet", fix=f"Start one with `{program()} run quickstart`, or name a folder.")


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Show progress and let signals ask for a stop instead of ending the process."""
    progress.use(progress.automatic())
    with interrupt.listening():
        yield


def plain_command(name: str, function: Any, help_text: str, params: list[click.Parameter]) -> click.Command:
    """A click command whose help keeps its line breaks."""
    paragraphs = "\n\n".join("\b\n" + block if "\n" in block or block.startswith("  ") else block for block in help_text.split("\n\n"))
    return click.Command(name, callback=function, help=paragraphs, params=params, context_settings={"max_content_width": 100})


def allow_option() -> click.Option:
    """`--allow`, which alone lets a recipe's reward run a program or ask another machine."""

    def allow(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
        ctx.with_resource(consent.allowing(names))

    told = "A program (its file) that may run, or another machine (HOST or HOST:PORT) that may be asked, as a reward; may be repeated."
    return click.Option(["--allow"], multiple=True, metavar="NAME", help=told, callback=allow, expose_value=False)


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"luyen: {text}", file=sys.stderr)
