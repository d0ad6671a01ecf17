"""The lines of a chat: what is typed or piped in, commands, and text that appears as it is made."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from luyen.cli.arguments import warn
from luyen.core.errors import UserError
from luyen.core.records import Message
from luyen.data.inspect import visible
from luyen.inference.chat import ChatSession
from luyen.inference.continuation import Continuation

COMMAND = re.compile(r"/[^/\s]\S*|/")
"""A single word that begins with one slash."""
NOT_TEXT = re.compile(r"[\ud800-\udfff]")
"""What `_lines` makes of a byte that is not UTF-8."""
ESCAPED = re.compile(r"//\S*")
SLASHES = "    //word   send /word to the model: a single word that begins with one slash is a command"


class Talk(Protocol):
    """What a line is sent to."""

    prompt: str

    @property
    def commands(self) -> Mapping[str, tuple[str, Callable[[], str]]]:
        """Command -> what it does, and the deed, which returns what to say."""

    def send(self, line: str) -> None:
        """Answer a line on stdout. Raises UserError when it cannot be answered."""


def interactive() -> bool:
    """Whether a person types and sees the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def converse(talk: Talk) -> None:
    """Take lines until they end or /exit; Ctrl-C stops an answer, and from a pipe everything.

    What comes from a pipe is written before its answer, as if it had been typed.
    """
    for line in _lines(talk.prompt):
        word = line.strip()
        if NOT_TEXT.search(line):
            warn("this line is not UTF-8 text and was not sent")
            continue
        if not COMMAND.fullmatch(word):
            try:
                talk.send(word[1:] if ESCAPED.fullmatch(word) else line)
            except UserError as error:
                warn(str(error))
            except KeyboardInterrupt:
                print(" [stopped]")
                if not interactive():
                    raise
            continue
        if not interactive():
            print(f"{talk.prompt}{word}")
        if word in ("/exit", "/quit"):
            return
        if word in talk.commands:
            print(talk.commands[word][1]())
        else:
            print(("" if word == "/help" else f"no command {word}. ") + "Commands:")
            for name, (about, _) in talk.commands.items():
                print(f"    {name:8} {about}")
            print(f"    /help    this list\n    /exit    end (also /quit, Ctrl-D, and Ctrl-C at the prompt)\n{SLASHES}")


def _lines(prompt: str) -> Iterator[str]:
    """Lines of stdin without their ends; bytes that are no text become surrogates (`NOT_TEXT`)."""
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    while True:
        try:
            line = input(prompt if interactive() else "")
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


@dataclass
class Answers:
    """Questions to an assistant."""

    session: ChatSession
    prompt: str = "you> "

    def __post_init__(self) -> None:
        self.begin: list[Message] = list(self.session.messages)
        self.commands = {"/clear": ("forget the conversation", self._clear)}

    def _clear(self) -> str:
        self.session.messages[:] = self.begin
        return "the conversation is forgotten" + ("; the system message stays" if self.begin else "")

    def send(self, line: str) -> None:
        """The answer, and which passages the model was given."""
        question = line.strip()
        if not question:
            return
        if not interactive():
            print(f"{self.prompt}{question}")
        show(self.session.ask(question))
        for source in self.session.sources:
            said = f": {source.answer}" if source.answer else ""
            print(visible(f"    the pages, {source.title}{said}" + (f" ({source.url})" if source.url else "")))
        if self.session.forgotten:
            print(f"    ({self.session.forgotten} earlier messages no longer fit and were left out)")


@dataclass
class Texts:
    """Beginnings of texts to go on from; an empty line asks for a text from nothing."""

    session: Continuation
    prompt: str = "text> "
    commands: Mapping[str, tuple[str, Callable[[], str]]] = field(default_factory=dict)

    def send(self, line: str) -> None:
        """The typed text and how it goes on, in one piece."""
        text = line if line.strip() else ""
        pieces = self.session.write(text)
        print(f"{'' if interactive() else self.prompt}{text}", end="", flush=True)
        show(pieces)
