"""The command `luyen`: a table of commands, each in its own module, imported when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time

import click

from luyen import __version__
from luyen.core import distributed
from luyen.core.errors import Interrupted, LuyenError, UserError, nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("luyen.cli.run", "Run a recipe; `luyen run quickstart` is the one to begin with."),
    "plan": ("luyen.cli.plan", "Say what a recipe takes, here and on rented devices, before it runs."),
    "search": ("luyen.cli.search", "Search for settings of a training stage: learning rate, batch, any key."),
    "chat": ("luyen.cli.chat", "Talk to a model; without arguments, to the last run's."),
    "inspect": ("luyen.cli.inspect", "Show which tokens of a data set are trained on, before training."),
    "crawl": ("luyen.cli.verb", "Fetch web pages politely, with provenance."),
    "curate": ("luyen.cli.verb", "Turn pages or files into clean, deduplicated documents."),
    "tokenizer": ("luyen.cli.verb", "Train a tokenizer on documents."),
    "pretrain": ("luyen.cli.verb", "Train a language model from nothing on documents."),
    "synth": ("luyen.cli.verb", "Make questions and answers from documents with a template."),
    "sft": ("luyen.cli.verb", "Fine-tune a model on conversations; loss on the answers only."),
    "label": ("luyen.cli.label", "Let people say which of two answers is better, on a page."),
    "reward": ("luyen.cli.verb", "Train a reward model on preferences, and measure it."),
    "dpo": ("luyen.cli.verb", "Learn from preferences: DPO, its kin, and KTO."),
    "ppo": ("luyen.cli.verb", "Improve a model by its own answers and a reward: PPO, with a critic."),
    "grpo": ("luyen.cli.verb", "Improve a model by its own answers: GRPO, RLOO, REINFORCE++."),
    "reject": ("luyen.cli.verb", "Fine-tune a model on the best of its own answers, by a reward."),
    "evaluate": ("luyen.cli.verb", "Compare models on questions and on held-out text."),
    "merge": ("luyen.cli.merge", "Merge adapters into their model, and prove that it computes the same."),
    "import": ("luyen.cli.import_", "Bring a llama2.c checkpoint into the Hugging Face layout."),
    "export": ("luyen.cli.export", "Turn a training checkpoint, also a sharded one, into a Hugging Face folder."),
    "report": ("luyen.cli.report", "Write a run's report page and model card again."),
    "recipes": ("luyen.cli.recipes", "List the recipes that come with Luyện."),
    "schema": ("luyen.cli.schema", "Print the JSON schema of a verb's config, for editors."),
}
OTHERS_WAIT_SECONDS = 5.0
"""How long a process waits with an error that the main one may have too: they read the same words, at not quite the same time."""


class Commands(click.Group):
    """Looks commands up in the table; unknown ones are answered with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a name, None when there is none; its module is imported only when it is the one called."""
        if name not in COMMANDS:
            return None
        if len(sys.argv) < 2 or sys.argv[1] != name:  # only listed, not called: its help line is enough
            return click.Command(name, short_help=COMMANDS[name][1])
        module = importlib.import_module(COMMANDS[name][0])
        command: click.Command = module.command(name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown command fails with the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}. {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="luyen")
def app() -> None:
    """Luyện: from raw web pages to an assistant that answers.

    `luyen COMMAND --help` prints every setting of a command with its meaning and default. Settings are key=value.
    """


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit code (see core/errors)."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Threads that wait for each other spin a moment, not for ever: sleeping at once costs 4 % of a training step on two cores, and on a
    # machine that others use too the default, some hundred times as long, made a step several times slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    try:
        sys.exit(app(prog_name="luyen", standalone_mode=False))
    except (LuyenError, click.ClickException) as error:
        _tell(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("luyen: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"luyen: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _tell(error: LuyenError | click.ClickException) -> None:
    """One line on stderr. What all processes of a run found wrong alike, or were asked to stop by, only the main one tells.

    Another one waits for the launcher, which ends it when the main one has ended with the same error. If that does not happen, the error
    is its own.
    """
    if not distributed.is_main():
        if isinstance(error, Interrupted):
            return
        if not isinstance(error, LuyenError) or isinstance(error, UserError):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: os._exit(error.exit_code))
            time.sleep(OTHERS_WAIT_SECONDS)
        print(f"luyen: rank {distributed.rank()}: {error}", file=sys.stderr)
    elif isinstance(error, click.ClickException):
        error.show()
    else:
        print(f"luyen: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
