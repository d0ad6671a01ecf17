"""Chat templates of folders that others made: known ones are recognised by their text."""

from __future__ import annotations

from collections.abc import Mapping

from luyen.tokenizer.templates import TEMPLATES, ChatTemplate, Names


def recognise(jinja: str, names: Names, control: Mapping[str, int]) -> ChatTemplate | None:
    """The template of the table with exactly this Jinja text, for a tokenizer that has its control tokens."""
    for template in TEMPLATES.values():
        if template.jinja == jinja and all(token in control for token in template.needs(names)):
            return template
    return None
