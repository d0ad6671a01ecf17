"""`luyen chat [RUN | MODEL]`: a conversation in the terminal, over the pages that the run crawled; or texts to be continued."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import PositiveInt, field_validator

from luyen.cli.arguments import all_runs, field_help, one_word, plain_command, program, split_words, warn
from luyen.cli.chat_adapters import NO_ADAPTER, base_for, open_with
from luyen.cli.export import suggestion
from luyen.cli.unfinished import RECIPE, command_again, makes_model, no_model, standing, verbs_of
from luyen.core import manifest
from luyen.core.config import load
from luyen.core.errors import ConfigError, DamagedFile, ModelError, UserError
from luyen.core.folders import model_in
from luyen.core.hub import has_hub_form
from luyen.inference.config import SamplingConfig
from luyen.recipe.table import VERBS

if TYPE_CHECKING:
    from luyen.models.transformer import Transformer
    from luyen.tokenizer.load import Tokenizer

HELP = """Talk to a model. Without an argument, to the assistant of the last run; else to a run's or a model's folder or a hub name.

Each question is looked up in the run's pages; a passage that fits is given to the model and shown below its answer.
--no-retrieval asks the model alone.

A model without a chat template, or one that was only pretrained, continues what you type; an empty line asks for a text from
nothing. --continue asks the same of any model, --no-continue talks to a pretrained one as if it were an assistant.

Several adapters can be on one model in memory: adapters.NAME=FOLDER of each; without a MODEL their own base is taken. /adapter NAME
changes to one without reloading, /adapter none to the model itself, /all TEXT asks all at once.

Ctrl-C stops an answer; at the prompt it ends the chat, as Ctrl-D does. /help lists the commands (/clear forgets the
conversation). A single word that begins with a slash is a command; write two slashes to send it. Lines can also come from a pipe.

How answers are written, as key=value:"""
CONTINUED_TOKENS = 200
"""Longest continuation when max_new_tokens is not given: a text is longer than an answer."""


class ChatConfig(SamplingConfig):
    """How answers are drawn from the model, and where."""

    max_new_tokens: PositiveInt = 64
    """Longest answer in tokens; a continued text has at most 200 unless this is given."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps: where the model and its cache are."""
    adapters: dict[str, str] = {}
    """Several LoRA or DoRA adapters on one model, as adapters.law=FOLDER adapters.style=FOLDER; the first answers first."""

    @field_validator("adapters")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        if any(name == NO_ADAPTER or not name or name.split() != [name] for name in value):
            raise ValueError(f"names without spaces; {NO_ADAPTER} is the model itself")
        return value


def command(name: str) -> click.Command:
    """The command `chat`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[RUN | MODEL] [KEY=VALUE]..."),
        click.Option(["--retrieval/--no-retrieval"], default=True, help="Look questions up in the run's pages."),
        click.Option(["--continue/--no-continue", "continued"], default=None, help="Continue texts, or answer questions."),
        click.Option(["--system"], metavar="TEXT", help="A system message to begin with."),
    ]
    return plain_command(name, _chat, f"{HELP}\n\n{field_help(ChatConfig)}", params)


def _chat(words: tuple[str, ...], retrieval: bool, continued: bool | None, system: str | None) -> None:
    plain, settings = split_words(words)
    config = load(ChatConfig, settings, "luyen chat")
    adapters = {name: find(place)[1] for name, place in config.adapters.items()}
    if plain:
        run, model = find(one_word(plain, "run or model"))
    else:
        run, model = find(base_for(adapters)) if adapters else _last()
    from luyen.adapters import files
    from luyen.core.device import pick_device
    from luyen.tokenizer.load import Tokenizer

    device = pick_device(config.device)
    if adapters:
        network, tokenizers = open_with(model, adapters, device)
    else:
        network, tokenizers = files.open_model(model, device), {None: Tokenizer.load(files.locate_tokenizer(model))}
    asked = [(place, tokenizers[name]) for name, place in adapters.items()] or [(model, tokenizers[None])]
    reasons = [_why_continue(place, files.locate_tokenizer(place), tokenizer, continued) for place, tokenizer in asked]
    if reason := next(filter(None, reasons), ""):
        if system:
            raise ConfigError("--system is for a conversation", found=reason, fix="Leave it out.")
        longest = {} if "max_new_tokens" in settings else {"max_new_tokens": CONTINUED_TOKENS}
        _continue(network, tokenizers, config.model_copy(update=longest), reason)
    else:
        _talk(network, tokenizers, config, model, run if retrieval else None, system)


def _why_continue(model: str, folder: Path, tokenizer: Tokenizer, wanted: bool | None) -> str:
    """Why texts are continued, in one line; "" when questions are answered."""
    if not tokenizer.has_template:
        if wanted is False:
            raise ConfigError(
                f"{model} has no chat template, so it cannot chat",
                fix=f"Fine-tune it with `{program()} sft`, or leave --no-continue out.",
            )
        return f"{model} has no chat template: it continues what you type"
    if wanted is None and _only_pretrained(folder):
        return f"{model} was only pretrained: it continues what you type"
    return f"{model} continues what you type" if wanted else ""


def _only_pretrained(folder: Path) -> bool:
    """Whether Luyện's own manifest says so; the model carries the template that fine-tuning will use."""
    with contextlib.suppress(DamagedFile):
        lineage = manifest.read(folder).get("lineage")
        return isinstance(lineage, dict) and lineage.get("algorithm") == "pretrain"
    return False


Tokenizers = Mapping["str | None", "Tokenizer"]
"""Of each adapter of a model, and under None of the model itself."""


def _continue(model: Transformer, tokenizers: Tokenizers, sampling: SamplingConfig, reason: str) -> None:
    from luyen.cli.conversation import Texts, converse, interactive
    from luyen.inference.continuation import Continuation

    first, of_adapters = _first(tokenizers)
    if interactive():
        nothing = "" if tokenizers[first].bos_id is None else "; an empty line asks for a text from nothing"
        print(f"{reason}{nothing}.{_adapters_told(of_adapters)} Ctrl-C stops a text, Ctrl-D ends, /help.")
    else:
        warn(reason)
    converse(Texts(Continuation(model, tokenizers[first], sampling, adapter=first), of_adapters))


def _talk(
    model: Transformer, tokenizers: Tokenizers, sampling: SamplingConfig, name: str, run: Path | None, system: str | None
) -> None:  # fmt: skip
    from luyen.cli.conversation import Answers, converse, interactive
    from luyen.core.records import Message
    from luyen.inference.chat import ChatSession

    first, of_adapters = _first(tokenizers)
    session = ChatSession(model, tokenizers[first], sampling, _retrieval(run) if run else None, adapter=first)
    if system:
        session.messages.append(Message("system", system))
    if interactive():
        pages = ", with its run's pages" if session.retrieve else ""
        print(f"{name}{pages}.{_adapters_told(of_adapters)} Ctrl-C stops an answer, Ctrl-D ends, /help.")
    converse(Answers(session, of_adapters))


def _first(tokenizers: Tokenizers) -> tuple[str | None, Tokenizers]:
    """Who answers first, and the tokenizers among which can be chosen: none where the model carries no adapter."""
    named = [name for name in tokenizers if name is not None]
    return (named[0], tokenizers) if named else (None, {})


def _adapters_told(tokenizers: Tokenizers) -> str:
    return f" Adapters: {', '.join(name for name in tokenizers if name)}; /adapter NAME, /all TEXT." if tokenizers else ""


def _last() -> tuple[Path | None, str]:
    """The run that was worked on last of those that have a model; else an error about the last that will have one."""
    begun = [run for run in all_runs() if (run / RECIPE).is_file() and _readable(run)]
    for run in begun:
        if _models(run):
            return find(str(run))
    if begun:
        raise no_model(next(filter(makes_model, begun), begun[0]))
    raise UserError("there is no run yet", fix=f"Start one with `{program()} run quickstart`, or name a folder.")


def _readable(run: Path) -> bool:
    """Whether a run's recipe can be read; one that cannot is told and passed over."""
    try:
        verbs_of(run)
    except ConfigError as error:
        warn(f"the run {run} is passed over: {error}")
        return False
    return True


def _models(run: Path) -> list[str]:
    """The stages of a run that have a finished model, one that writes: a reward model does not."""
    verbs = verbs_of(run)
    writing = [name for name, verb in verbs.items() if verb not in VERBS or VERBS[verb].kind == "model"]
    return [name for name in writing if model_in(run / name) and (run / name / manifest.MANIFEST).is_file()]


def find(place: str) -> tuple[Path | None, str]:
    """The run folder, if there is one, and the model to talk to: of a run its last fine-tuned model, else its last model."""
    path = manifest.existing(place) or Path(place).expanduser()
    if (path / RECIPE).is_file():
        verbs, models = verbs_of(path), _models(path)
        tuned = [name for name in models if verbs[name] != "pretrain"]
        if not models:
            raise no_model(path)
        chosen = (tuned or models)[-1]
        missing = [name for name, verb in verbs.items() if verb in VERBS and VERBS[verb].kind == "model" and name not in models]
        if missing and not tuned:
            warn(f"{missing[-1]} has no finished model yet ({standing(path)}), so this is {chosen}. Continue with: {command_again(path)}")
        return path, str(model_in(path / chosen))
    if path.exists():
        run = next((folder for folder in path.resolve().parents[:2] if (folder / RECIPE).is_file()), None)
        begun = run and any((path / name).exists() for name in ("stage.json", "checkpoints")) and not model_in(path)
        if run and begun:
            raise no_model(run)
        if (path / "state.json").is_file():
            raise ModelError(f"{path} is a training checkpoint", expected="a model", fix=f"Make one of it: {suggestion(path)}")
        return run, str(path)
    if has_hub_form(place):
        return None, place
    raise UserError(f"no run or model {place!r}", expected="a folder or a hub name owner/model")


def _retrieval(run: Path) -> Any:
    """Question -> passages over the run's questions' passages; None when the run has none."""
    from luyen.inference.chat import Source
    from luyen.retrieval.index import Index

    found: list[Path] = []
    with contextlib.suppress(OSError):
        found = sorted(run.glob("*/passages.jsonl"))
    if not found:
        return None
    index = Index.from_file(found[0])

    def retrieve(question: str) -> list[Source]:
        hit = index.relevant(question)
        return [Source(hit.passage.title, hit.passage.text, hit.passage.url, hit.passage.answer)] if hit else []

    return retrieve
