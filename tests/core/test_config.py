"""Configs: strict, told in one line, and the only source of help and schema."""

from pathlib import Path

import pytest

from luyen.core.config import Config, Input, describe, input_fields, load, merge, parse_overrides, parse_yaml, read_yaml
from luyen.core.errors import ConfigError


class Inner(Config):
    """A section."""

    rate: float = 0.1
    """How fast."""


class Outer(Config):
    """A config."""

    data: Input
    """Where it comes from."""
    models: dict[str, Input] = {}
    """More inputs."""
    steps: int = 3
    """How many."""
    inner: Inner = Inner()
    """The section."""


def test_values_lie_over_defaults() -> None:
    config = load(Outer, {"data": "x", "inner": {"rate": 1}})
    assert (config.steps, config.inner.rate) == (3, 1.0)
    assert input_fields(Outer) == {"data", "models"}
    assert [field.path for field in describe(Outer)] == ["data", "models", "steps", "inner.rate"]
    assert next(iter(describe(Outer))).help == "Where it comes from."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dat": 1}, "Did you mean 'data'?"),
        ({"data": "x", "inner": {"rat": 1}}, "unknown key 'inner.rat'. Did you mean 'inner.rate'?"),
        ({"data": "x", "rate": 1}, "unknown key 'rate'. Did you mean 'inner.rate'?"),
        ({"data": "x", "rates": 1}, "unknown key 'rates'. Did you mean 'inner.rate'?"),
        ({"data": "x", "inner": {"steps": 1}}, "unknown key 'inner.steps'. Did you mean 'steps'?"),
        ({"data": "x", "inner": {"zzz": 1}}, "unknown key 'inner.zzz'. Known: inner.rate."),
        ({}, "key 'data' is missing"),
        ({"data": "x", "steps": "many"}, "steps; found 'many'; expected a valid integer"),
        ({"data": "x", "inner": {"rate": float("nan")}}, "inner.rate"),
    ],
)
def test_mistakes_name_key_found_and_expected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Outer, values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load(Outer, {"data": "x", "stesp": 1, "steps": "many", "inner": {"rat": 1, "rate": "fast"}, "models": {"a": 1, "b": 2}}, "luyen do")
    told = str(error.value)
    assert told.startswith("luyen do: 5 things are wrong: (1) unknown key") and "\n" not in told
    for part in (
        "'stesp'. Did you mean 'steps'?",
        "'inner.rat'. Did you mean 'inner.rate'?",
        "steps; found 'many'",
        "inner.rate; found 'fast'",
    ):
        assert part in told
    assert told.count("models.") == 1, "one complaint for a key, not one for each value in it"
    with pytest.raises(ConfigError) as alone:
        load(Outer, {"dat": 1, "inner": {"rat": 1}})
    assert "is missing" not in str(alone.value), "a misspelt key is also a missing one"


def test_words_of_the_command_line() -> None:
    assert parse_overrides(["a.b=1e-3", "c=[x, 2]", "d=", "e=a=b"]) == {"a": {"b": 0.001}, "c": ["x", 2], "d": None, "e": "a=b"}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
    for words, message in ((["novalue"], "key=value"), (["a=1", "a.b=2"], "a section there")):
        with pytest.raises(ConfigError, match=message):
            parse_overrides(words)


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "a: [1", "a: 2020-99-99", "a: " + "[" * 5000, "!!python/object/apply:os.system [ls]", "a: 1e999999x: 2"]
)
def test_yaml_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_yaml(text)


def test_yaml_files(tmp_path: Path) -> None:
    for name, content, message in (("list.yaml", "- a", "holds no mapping"), ("bytes.yaml", "\xff\xfe", "cannot be read")):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / name)
    with pytest.raises(ConfigError, match="no file"):
        read_yaml(tmp_path / "none.yaml")
    assert parse_yaml("base: &b {x: 1}\nover: {<<: *b, y: 1e-3}")["over"] == {"x": 1, "y": 0.001}
