"""Rendering a Jinja chat template that came with a model, as transformers does, without trusting it.

ImmutableSandboxedEnvironment keeps a template from reaching Python (CVE-2024-34359 was a plain environment). There is no clock:
a template that asks for today's date only if it can gets its fixed date, so equal conversations give equal ids.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luyen.core.errors import DataError, ModelError
from luyen.core.records import Message

LONGEST_RENDERING = 1 << 26
"""Characters after which a template is taken to be running wild."""


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
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


@functools.lru_cache(maxsize=64)
def _compiled(jinja: str) -> jinja2.Template:
    try:
        return _environment().from_string(jinja)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ModelError("the chat template does not parse", found=error, fix="Put a correct chat_template.jinja in the folder.") from error


def render_jinja(jinja: str, messages: Sequence[Message], specials: dict[str, str], *, add_generation_prompt: bool) -> str:
    """The string that the template makes of a conversation. specials: `bos_token`, `eos_token`, `pad_token`.

    Raises DataError with the template's own words when it refuses the conversation, ModelError when it does not parse.
    """
    plain = [{"role": message.role, "content": message.content} for message in messages]
    blocks: list[str] = []
    length = 0
    variables = {"messages": plain, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None, **specials}
    template = _compiled(jinja)
    try:
        for block in template.generate(variables):
            blocks.append(block)
            length += len(block)
            if length > LONGEST_RENDERING:
                raise DataError("the chat template does not come to an end", found=f"{length} characters")
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError("the chat template refuses the conversation", found=f"roles {roles}: {error}", fix="Change its roles.") from error
    return "".join(blocks)
