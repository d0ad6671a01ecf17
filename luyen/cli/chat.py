"""`luyen chat [RUN | MODEL]`: a conversation in the terminal, over the pages that the run crawled."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luyen.cli.arguments import field_help, last_run, one_word, plain_command, split_words, warn
from luyen.core import manifest
from luyen.core.config import load, read_yaml
from luyen.core.errors import ConfigError, UserError
from luyen.inference.config import SamplingConfig

if TYPE_CHECKING:
    from luyen.inference.chat import ChatSession

HELP = """Talk to a model. Without an argument, to the assistant of the last run; else to a run's or a model's folder or a hub name.

Each question is looked up in the run's pages; a passage that fits is given to the model and shown below its answer.
--no-retrieval asks the model alone.
Ctrl-C stops an answer, Ctrl-D ends, /clear forgets the conversation. Questions can also come line by line from a pipe.

How answers are written, as key=value:"""


def command(name: str) -> click.Command:
    """The command `chat`."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[RUN | MODEL] [KEY=VALUE]..."),
        click.Option(["--retrieval/--no-retrieval"], default=True, help="Look questions up in the run's pages."),
        click.Option(["--system"], metavar="TEXT", help="A system message to begin with."),
    ]
    return plain_command(name, _chat, f"{HELP}\n\n{field_help(SamplingConfig)}", params)


def _chat(words: tuple[str, ...], retrieval: bool, system: str | None) -> None:
    plain, settings = split_words(words)
    sampling = load(SamplingConfig, settings, "luyen chat")
    place = one_word(plain, "run or model") if plain else str(last_run("*/model/config.json"))
    run, model = _find(place)
    session = _session(model, run if retrieval else None, sampling)
    if system:
        from luyen.core.records import Message

        session.messages.append(Message("system", system))
    about = f"{model}" + (", with its run's pages" if session.retrieve else "")
    if sys.stdin.isatty():
        print(f"{about}. Ctrl-C stops an answer, Ctrl-D ends.")
    _loop(session)


def _loop(session: ChatSession) -> None:
    begin = list(session.messages)
    while True:
        try:
            question = input("you> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question == "/clear":
            session.messages[:] = begin
        elif question in ("/exit", "/quit"):
            return
        elif question:
            try:
                _answer(session, question)
            except UserError as error:
                warn(str(error))


def _answer(session: ChatSession, question: str) -> None:
    pieces = session.ask(question)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        print(" [stopped]", end="")
    print()
    for source in session.sources:
        said = f": {source.answer}" if source.answer else ""
        print(f"    the pages, {source.title}{said}" + (f" ({source.url})" if source.url else ""))
    if session.forgotten:
        print(f"    ({session.forgotten} earlier messages no longer fit and were left out)")


def _find(place: str) -> tuple[Path | None, str]:
    """The run folder, if it is one, and the model to talk to: the run's last fine-tuned model, else its last model."""
    path = Path(place).expanduser()
    if (path / "recipe.resolved.yaml").is_file():
        stages: dict[str, Any] = read_yaml(path / "recipe.resolved.yaml").get("stages", {})
        models = [name for name in stages if (path / name / "model" / "config.json").is_file() and _sealed(path / name)]
        tuned = [name for name in models if stages[name].get("do") != "pretrain"]
        if not models:
            raise UserError(f"the run {path} has no finished model yet", fix="Run the same `luyen run` command again to continue it.")
        return path, str(path / (tuned or models)[-1] / "model")
    if path.exists():
        return (path.parents[1] if (path.parent.parent / "recipe.resolved.yaml").is_file() else None), str(path)
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        return None, place
    raise UserError(f"no run or model {place!r}", expected="a folder or a hub name owner/model")


def _sealed(folder: Path) -> bool:
    return (folder / manifest.MANIFEST).is_file()


def _session(model: str, run: Path | None, sampling: SamplingConfig) -> ChatSession:
    from luyen.inference.chat import ChatSession
    from luyen.models import hf
    from luyen.tokenizer.load import Tokenizer

    network = hf.load(model)
    network.eval()
    tokenizer = Tokenizer.load(hf.locate(model))
    if not tokenizer.has_template:
        raise ConfigError(f"{model} has no chat template, so it cannot chat", fix="Fine-tune it with `luyen sft` first.")
    return ChatSession(network, tokenizer, sampling, _retrieval(run) if run else None)


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
