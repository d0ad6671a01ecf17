"""Rendering a Jinja chat template that came with a model, as transformers does, without trusting it.

ImmutableSandboxedEnvironment keeps a template from reaching Python (CVE-2024-34359 was a plain environment). There is no clock:
a template that asks for today's date only if it can gets its fixed date, so equal conversations give equal ids. The sandbox itself limits
neither time nor memory (https://jinja.palletsprojects.com/en/stable/sandbox/), so loops, calls and filters are counted against a deadline
here, and the operators and widths that make large values out of small ones are checked first.
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luyen.core.errors import DataError, ModelError
from luyen.core.records import Message

LONGEST_RENDERING = 1 << 26
"""Characters after which a template is taken to be running wild, and of the longest text it may build on the way."""
LONGEST_LIST = 1 << 20
LONGEST_NUMBER = 1 << 16
"""Bits."""
SECONDS = 2.0
"""Processor time that one rendering may take; templates in use take milliseconds."""
_STEPS = 256  # between two looks at the clock
_PERCENT = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*?(?:\*|\d{7})")
_BRACES = re.compile(r"\{[^{}]+\{|\d{7}")
"""A width or precision of seven digits, or the star or inner braces that take one from the arguments."""


class _Spent(threading.local):
    """What the rendering under way in this thread may still use."""

    steps = 0
    deadline = math.inf
    padding = 0

    def start(self) -> None:
        self.steps, self.padding, self.deadline = 0, 0, time.thread_time() + SECONDS

    def step(self) -> None:
        self.steps += 1
        if self.steps % _STEPS == 0 and time.thread_time() > self.deadline:
            raise ModelError("the chat template does not come to an end", found=f"more than {SECONDS:g} s", fix="Mend its loops.")

    def pad(self, width: int) -> None:
        """Count white space and empty lists, of which a short template can ask for any number."""
        self.padding += max(width, 0)
        if self.padding > LONGEST_RENDERING:
            raise _too_large()


_spent = _Spent()


def _too_large() -> ModelError:
    return ModelError("the chat template builds too large a value", expected=f"at most {LONGEST_RENDERING:,} characters", fix="Mend it.")


def _check_format(text: object, width: re.Pattern[str] = _PERCENT) -> None:
    if isinstance(text, str) and width.search(text):
        raise _too_large()


def _check_binop(operator: str, left: Any, right: Any) -> None:
    """Raise ModelError when `left operator right` would be larger than the limits."""
    if operator == "%":
        _check_format(left)
    elif isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}.get(operator, 0)
        if bits > LONGEST_NUMBER:
            raise _too_large()
    elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _check_size(left, len(left) + len(right))
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
                _check_size(value, len(value) * times)


def _check_size(value: Any, size: int) -> None:
    if size > (LONGEST_RENDERING if isinstance(value, str | bytes) else LONGEST_LIST):
        raise _too_large()


class _CodeGenerator(CodeGenerator):
    """Sends every loop through `ticking` and every `~` through `joined`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        ticking = nodes.Call(nodes.EnvironmentAttribute("ticking"), [node.iter], [], None, None, lineno=node.lineno)
        node.iter = ticking.set_environment(self.environment)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _CodeGenerator

    def ticking(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, each counted."""
        for item in items:
            _spent.step()
            yield item

    def joined(self, parts: Sequence[Any]) -> str:
        """What `~` makes of its operands (autoescape is off)."""
        texts = [str(part) for part in parts]
        _check_size("", sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, if its result is not too large."""
        _check_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805 (kwargs may be named self)
        """A call, counted; methods of texts take no width over the limit."""
        _spent.step()
        if isinstance(getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None), str | bytes):
            for value in (*args, *kwargs.values()):
                _spent.pad(value if isinstance(value, int) else 0)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in the sandbox, if its text asks for no large width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format("".join(value.__self__.replace("{{", "").partition("{")[1:]), _BRACES)
        return wrapped


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose uses are counted and whose widths are checked."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _spent.step()
        if name in ("center", "indent", "slice", "batch"):
            for value in (*args[1:], *kwargs.values()):
                _spent.pad(value if isinstance(value, int) else 0)
        if name == "format":
            _check_format(args[0])
        return function(*args, **kwargs)

    return counted


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, with which some templates mark answers: the content stays, the mark goes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _counted(name, function) for name, function in environment.filters.items()}
    environment.globals["raise_exception"] = _raise_exception
    del environment.globals["lipsum"]  # random text of any length
    return environment


@functools.lru_cache(maxsize=64)
def _compiled(jinja: str) -> jinja2.Template:
    try:
        return _environment().from_string(jinja)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, OverflowError, MemoryError) as error:
        raise ModelError("the chat template does not parse", found=error, fix="Put a correct chat_template.jinja in the folder.") from error


def render_jinja(jinja: str, messages: Sequence[Message], specials: dict[str, str], *, add_generation_prompt: bool) -> str:
    """The string that the template makes of a conversation. specials: `bos_token`, `eos_token`, `pad_token`.

    Raises DataError with the template's own words when it refuses the conversation, ModelError when it does not parse, takes more than
    `SECONDS` or builds values over the limits.
    """
    plain = [{"role": message.role, "content": message.content} for message in messages]
    blocks: list[str] = []
    length = 0
    variables = {"messages": plain, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None, **specials}
    _spent.start()
    template = _compiled(jinja)
    try:
        for block in template.generate(variables):
            blocks.append(block)
            length += len(block)
            if length > LONGEST_RENDERING:
                raise DataError("the chat template does not come to an end", found=f"{length} characters")
    except MemoryError as error:
        raise _too_large() from error
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError("the chat template refuses the conversation", found=f"roles {roles}: {error}", fix="Change its roles.") from error
    return "".join(blocks)
