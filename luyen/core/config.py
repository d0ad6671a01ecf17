"""Configs are frozen classes; everything else (command line, YAML, help, JSON schema) is read off them.

A config class derives from `Config`; the docstring under each field is its help. A section is a field whose type
is another config. `Input` marks a field that names a folder, a file or, inside a recipe, another stage.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from luyen.core.errors import ConfigError
from luyen.core.old_names import answer, answer_value


class Config(BaseModel):
    """Base of every config: frozen, strict about unknown keys, field docstrings are help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True)
class InputMark:
    """Marks a config field as a path or a stage's name."""


Input = Annotated[str, InputMark()]
ConfigType = TypeVar("ConfigType", bound=Config)


MERGE = "tag:yaml.org,2002:merge"
"""Of the key <<, whose mapping's keys are taken where the mapping around it has none of the name."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]  # its own go over merged ones
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"key {key!r} stands twice at line {node.start_mark.line + 1}", fix="Keep one of them.")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, source: str = "YAML") -> Any:
    """The value that YAML (or JSON) text describes; ConfigError with the line when it does not parse."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML", found=str(error), fix="Check the indentation and quotes there.") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"{source} holds a value that cannot be read", found=error) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        value = parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}", fix="Check the path.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as text", found=error, fix="Give a YAML file.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no mapping", found=type(value).__name__, expected="key: value lines")
    return value


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1", "c=[x, y]"]` as a nested dict; values are YAML."""
    result: dict[str, Any] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"cannot read {item!r}", expected="key=value", fix="Nested keys use dots: train.steps=100.")
        set_dotted(result, key.strip(), parse_yaml(value, item))
    return result


def set_dotted(target: dict[str, Any], key: str, value: object) -> None:
    """Set `target["a"]["b"]` for key "a.b", making the dicts on the way."""
    *parents, last = key.split(".")
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {key!r}", found=f"{parent!r} = {child!r}", expected="a section there")
        target = child
    target[last] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid on it, section by section."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def load(config_class: type[ConfigType], values: Mapping[str, Any], source: str = "config") -> ConfigType:
    """Build a config from plain values. One ConfigError names every wrong key, what was found and what is expected."""
    try:
        return config_class.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(config_class, error, source) from None


def _explain(config_class: type[Config], error: ValidationError, source: str) -> ConfigError:
    """All that is wrong, in one error: unknown keys first, then the others in the order of definition."""
    known = set(_keys(config_class))
    unknown = [item for item in error.errors() if item["type"] == "extra_forbidden"]
    others: dict[str, Any] = {}
    for item in error.errors():
        if item["type"] != "extra_forbidden" and not (unknown and item["type"] == "missing"):  # a misspelt key is also a missing one
            others.setdefault(_owner(item["loc"], known), item)  # each form that a value could have had complains; the first one counts
    problems = [*unknown, *others.values()]
    if len(problems) == 1:
        return _problem(config_class, problems[0], f"{source}: ")
    told = [f"({number}) {str(_problem(config_class, item)).rstrip('.')}" for number, item in enumerate(problems, 1)]
    return ConfigError(f"{source}: {len(problems)} things are wrong: {'. '.join(told)}")


def _owner(place: tuple[int | str, ...], known: set[str]) -> str:
    """The key that a value's place lies in, without what follows inside the value."""
    paths = (".".join(map(str, place[:end])) for end in range(len(place), 0, -1))
    return next((path for path in paths if path in known), "")


def _problem(config_class: type[Config], problem: Any, before: str = "") -> ConfigError:
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return ConfigError(f"{before}unknown key {dotted!r}", fix=_nearest_key(config_class, path))
    if problem["type"] == "missing":
        return ConfigError(f"{before}key {dotted!r} is missing", fix=f"Add {dotted}=...")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not path:
        return ConfigError(f"{before}{message}")
    expected, fix = _lower_first(message.removeprefix("Input should be ")), answer_value(problem["input"], message)
    return ConfigError(f"{before}{dotted}", found=repr(problem["input"]), expected=expected, fix=fix)


def _nearest_key(config_class: type[Config], path: list[str]) -> str:
    """A sentence with the whole key that was probably meant: one of this name in another section, else the closest in this one."""
    keys = list(_keys(config_class))
    if known := answer(".".join(path), set(keys)):
        return known
    moved = [key for key in keys if key.split(".")[-1] == path[-1]]
    if moved:
        return f"Did you mean {' or '.join(map(repr, moved))}?"
    owner = _section(config_class, path[:-1])
    here = [".".join([*path[:-1], name]) for name in owner.model_fields] if owner else []
    names = sorted({key.split(".")[-1] for key in keys})
    for name in difflib.get_close_matches(path[-1], names, n=1):
        fitting = [key for key in keys if key.split(".")[-1] == name]
        return f"Did you mean {' or '.join(map(repr, [key for key in fitting if key in here] or fitting))}?"
    return f"Known: {', '.join(sorted(here or keys))}."


def _keys(config_class: type[Config], prefix: str = "") -> Iterator[str]:
    """Every key with its sections, sections themselves included."""
    for name, field in config_class.model_fields.items():
        yield f"{prefix}{name}"
        section = _config_in(field.annotation)
        if section is not None:
            yield from _keys(section, f"{prefix}{name}.")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _section(config_class: type[Config], path: list[str]) -> type[Config] | None:
    current: type[Config] | None = config_class
    for part in path:
        if current is None or part not in current.model_fields:
            return None
        current = _config_in(current.model_fields[part].annotation)
    return current


def _config_in(annotation: Any) -> type[Config] | None:
    """The config class that a field's type names, also inside Optional."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if get_origin(annotation) is not None and str(get_origin(annotation)) in (str(Union), "<class 'types.UnionType'>"):
        for argument in get_args(annotation):
            found = _config_in(argument)
            if found:
                return found
    return None


@dataclass(frozen=True)
class Field:
    """One config field as help shows it."""

    path: str
    type: str
    default: str
    help: str


def describe(config_class: type[Config], prefix: str = "") -> Iterator[Field]:
    """Every field of a config, sections opened, in the order of definition."""
    for name, field in config_class.model_fields.items():
        section = _config_in(field.annotation)
        if section is not None:
            yield from describe(section, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else _yaml_value(field.get_default(call_default_factory=True))
            yield Field(f"{prefix}{name}", _type_name(field), default, " ".join((field.description or "").split()))


def _yaml_value(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True, width=1000)).removesuffix("...\n").strip()


def _type_name(field: FieldInfo) -> str:
    name = field.annotation.__name__ if isinstance(field.annotation, type) and not get_args(field.annotation) else str(field.annotation)
    return name.replace("typing.", "").replace("NoneType", "None")


def input_fields(config_class: type[Config]) -> set[str]:
    """Top-level fields marked `Input` (also inside `list[Input]`, `dict[str, Input]` and Optional)."""

    def marked(annotation: Any, metadata: Iterable[object] = ()) -> bool:
        if any(isinstance(item, InputMark) for item in metadata):
            return True
        if get_origin(annotation) is Annotated:
            base, *marks = get_args(annotation)
            return marked(base, marks)
        return any(marked(argument) for argument in get_args(annotation))

    return {name for name, field in config_class.model_fields.items() if marked(field.annotation, field.metadata)}


def dump(config: Config) -> dict[str, Any]:
    """A config as plain JSON values, defaults included."""
    return config.model_dump(mode="json")
