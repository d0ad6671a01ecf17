"""Inputs of sections are inputs of the stage: they order the stages, must exist, and count by their content."""

from __future__ import annotations

from luyen.core.config import Config, Input, load
from luyen.recipe.graph import input_values
from luyen.recipe.inputs import neutral_config


class Inner(Config):
    source: Input | None = None
    weight: float = 1.0
    parts: list[Inner] = []


class Outer(Config):
    data: Input
    inner: Inner = Inner()
    named: dict[str, Inner] = {}


CONFIG = load(Outer, {"data": "a", "inner": {"source": "b", "parts": [{"source": "c"}, {"weight": 2.0}]}, "named": {"x": {"source": "d"}}})


def test_they_are_found_at_any_depth() -> None:
    assert input_values(CONFIG) == [("data", "a"), ("inner.source", "b"), ("inner.parts.0.source", "c"), ("named.x.source", "d")]
    assert input_values(load(Outer, {"data": "a"})) == [("data", "a")]


def test_their_content_stands_for_their_names() -> None:
    values = neutral_config(CONFIG, {name: f"<{name}>" for name in "abcd"})
    assert values["data"] == "<a>" and values["named"]["x"]["source"] == "<d>"
    assert values["inner"]["source"] == "<b>" and [part["source"] for part in values["inner"]["parts"]] == ["<c>", None]
