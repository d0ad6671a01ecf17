"""The lines of a chat: what is typed or piped in, commands, and text that appears as it is made."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from luyen.cli.arguments import warn
from luyen.cli.chat_adapters import NO_ADAPTER
from luyen.core.errors import UserError, nearest
from luyen.core.records import Message
from luyen.data.inspect import visible
from luyen.inference.chat import ChatSession
from luyen.inference.continuation import Continuation
from luyen.tokenizer.load import Tokenizer

COMMAND = re.compile(r"/[^/\s]\S*|/")
"""A word that begins with one slash: alone it is a command, before others only where a command of that name takes some."""
NOT_TEXT = re.compile(r"[\ud800-\udfff]")
"""What `_lines` makes of a byte that is not UTF-8."""
ESCAPED = re.compile(r"//\S*")
SLASHES = "    //word   send /word to the model: a single word that begins with one slash is a command"


@dataclass(frozen=True)
class Command:
    """What is called by a word with a slash."""

    about: str
    do: Callable[[str], str]
    """Of the words behind it; returns what to say. Raises UserError when that cannot be done."""
    takes: str = ""
    """The words behind it, as help shows them; "" where it takes none."""


class Talk(Protocol):
    """What a line is sent to."""

    @property
    def prompt(self) -> str:
        """What stands before a line."""

    @property
    def commands(self) -> Mapping[str, Command]:
        """By their words."""

    def send(self, line: str) -> None:
        """Answer a line on stdout. Raises UserError when it cannot be answered."""


def interactive() -> bool:
    """Whether a person types and sees the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def converse(talk: Talk) -> None:
    """Take lines until they end or /exit; Ctrl-C stops an answer, and from a pipe everything.

    What comes from a pipe is written before its answer, as if it had been typed.
    """
    for line in _lines(talk):
        if NOT_TEXT.search(line):
            warn("this line is not UTF-8 text and was not sent")
            continue
        word, rest = _command(talk, line.strip())
        try:
            if not word:
                talk.send(rest or line)
                continue
            if not interactive():
                print(f"{talk.prompt}{line.strip()}")
            if word in ("/exit", "/quit"):
                return
            if word in talk.commands:
                print(talk.commands[word].do(rest))
            else:
                print(("" if word == "/help" else f"no command {word}. ") + _help(talk))
        except UserError as error:
            warn(str(error))
        except KeyboardInterrupt:
            print(" [stopped]")
            if not interactive():
                raise


def _command(talk: Talk, text: str) -> tuple[str, str]:
    """The command that a line calls and the words behind it; without one "" and, where that is not the line itself, what is sent."""
    first, rest = [*text.split(maxsplit=1), "", ""][:2]
    escaped = ESCAPED.fullmatch(first) is not None
    known = talk.commands.get(first[1:] if escaped else first)
    if rest and not (known and known.takes):
        return "", ""
    if COMMAND.fullmatch(first):
        return first, rest
    return "", text[1:] if escaped else ""


def _help(talk: Talk) -> str:
    """The list of commands."""
    rows = [(f"{name} {command.takes}".rstrip(), command.about) for name, command in talk.commands.items()]
    rows += [("/help", "this list"), ("/exit", "end (also /quit, Ctrl-D, and Ctrl-C at the prompt)")]
    width = max(8, *(len(usage) for usage, _ in rows))
    return "\n".join(["Commands:", *(f"    {usage:{width}} {about}" for usage, about in rows), SLASHES])


def _lines(talk: Talk) -> Iterator[str]:
    """Lines of stdin without their ends; bytes that are no text become surrogates (`NOT_TEXT`)."""
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    while True:
        try:
            line = input(talk.prompt if interactive() else "")
        except EOFError:
            if interactive():
                print()
            return
        except KeyboardInterrupt:
            if not interactive():
                raise
            print()
            return
        yield line.removesuffix("\r")


def show(pieces: Iterator[str]) -> None:
    """Print text as it is made, without what a terminal would obey. Stopped by Ctrl-C, what was shown until then stays said."""
    try:
        for piece in pieces:
            print(visible(piece), end="", flush=True)
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    print()


def prompt_of(word: str, adapter: str | None) -> str:
    """What stands before a line: whom it is sent to, where that is an adapter."""
    return f"{word}> " if adapter is None else f"{word} [{adapter}]> "


def adapter_commands(
    session: ChatSession | Continuation, tokenizers: Mapping[str | None, Tokenizer], each: Callable[[str], str]
) -> dict[str, Command]:
    """/adapter and /all where the model carries adapters.

    `tokenizers`: of each adapter, with the chat template that it was tuned with, and under None of the model itself. `each`: what all
    say to a text, as it is shown.
    """
    names = {(NO_ADAPTER if name is None else name): name for name in tokenizers}

    def choose(name: str) -> str:
        if not name:
            return "\n".join(f"  {'*' if own == session.adapter else ' '} {shown}" for shown, own in names.items())
        if name not in names:
            raise UserError(f"no adapter {name!r}", fix=nearest(name, names))
        session.adapter, session.tokenizer = names[name], tokenizers[names[name]]
        return "the model itself, without an adapter" if session.adapter is None else f"with the adapter {name}"

    def ask_all(text: str) -> str:
        if not text:
            raise UserError("/all without a text", fix="Write it behind, in the same line.")
        return each(text)

    return {
        "/adapter": Command(f"go on with this adapter, {NO_ADAPTER} for the model itself; without a name the list", choose, "[NAME]"),
        "/all": Command("ask every adapter and the model itself, in one batch; nothing of it is remembered", ask_all, "TEXT"),
    }


def beside(said: Mapping[str | None, str]) -> list[str]:
    """What each adapter says, under its name; further lines of one are indented."""
    return [f"{NO_ADAPTER if name is None else name}> " + visible(text).replace("\n", "\n    ") for name, text in said.items()]


@dataclass
class Answers:
    """Questions to an assistant."""

    session: ChatSession
    tokenizers: Mapping[str | None, Tokenizer] = field(default_factory=dict)
    """Of the adapters that its model carries and of itself; empty without adapters."""

    def __post_init__(self) -> None:
        self.begin: list[Message] = list(self.session.messages)
        self.commands = {"/clear": Command("forget the conversation", self._clear)}
        if self.tokenizers:
            self.commands |= adapter_commands(self.session, self.tokenizers, self._each)

    @property
    def prompt(self) -> str:
        """What stands before a question."""
        return prompt_of("you", self.session.adapter)

    def _clear(self, _: str) -> str:
        self.session.messages[:] = self.begin
        return "the conversation is forgotten" + ("; the system message stays" if self.begin else "")

    def _each(self, question: str) -> str:
        return "\n".join([*beside(self.session.ask_each(question, self.tokenizers)), *self._told()])

    def send(self, line: str) -> None:
        """The answer, and which passages the model was given."""
        question = line.strip()
        if not question:
            return
        if not interactive():
            print(f"{self.prompt}{question}")
        show(self.session.ask(question))
        for told in self._told():
            print(told)

    def _told(self) -> Iterator[str]:
        """What the last prompt held, and what it did not."""
        for source in self.session.sources:
            said = f": {source.answer}" if source.answer else ""
            yield visible(f"    the pages, {source.title}{said}" + (f" ({source.url})" if source.url else ""))
        if self.session.forgotten:
            yield f"    ({self.session.forgotten} earlier messages no longer fit and were left out)"


@dataclass
class Texts:
    """Beginnings of texts to go on from; an empty line asks for a text from nothing."""

    session: Continuation
    tokenizers: Mapping[str | None, Tokenizer] = field(default_factory=dict)
    """Of the adapters that its model carries and of itself; empty without adapters."""

    def __post_init__(self) -> None:
        self.commands = adapter_commands(self.session, self.tokenizers, self._each) if self.tokenizers else {}

    @property
    def prompt(self) -> str:
        """What stands before a text."""
        return prompt_of("text", self.session.adapter)

    def _each(self, text: str) -> str:
        return "\n".join(beside({name: text + said for name, said in self.session.write_each(text, self.tokenizers).items()}))

    def send(self, line: str) -> None:
        """The typed text and how it goes on, in one piece."""
        text = line if line.strip() else ""
        pieces = self.session.write(text)
        print(f"{'' if interactive() else self.prompt}{text}", end="", flush=True)
        show(pieces)
