"""What a search varies: `stage.key=LOW..HIGH` is a range, `stage.key=a,b,c` a choice; every other setting is fixed.

A range between whole numbers stays whole where the key holds whole numbers, and is linear. Other ranges are logarithmic when both ends are
above 0, else linear; `:log` or `:linear` behind the range says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luyen.core.config import describe, dump, merge, parse_overrides, parse_yaml
from luyen.core.errors import ConfigError
from luyen.recipe.graph import Plan, plan

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(log|linear))?")
WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class Dimension:
    """One key that is varied."""

    key: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    linear: bool = False
    """Whether it was asked for in so many words."""
    choices: tuple[Any, ...] = ()
    """The values of a choice; empty for a range."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid before the search begins: all choices, or both ends of the range."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or isinstance(value, int))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        if self.choices:
            return {"key": self.key, "choices": list(self.choices)}
        return {"key": self.key, "low": self.low, "high": self.high, "whole": self.whole, "log": self.log}


@dataclass(frozen=True)
class Space:
    """A recipe with its fixed settings and the keys that are varied, all of one stage."""

    recipe: Path
    budget: str | None
    fixed: Mapping[str, Any]
    stage: str
    dimensions: tuple[Dimension, ...]

    def own(self) -> dict[str, Any] | None:
        """The values that the recipe has without the search; None where one is outside of its range or choices."""
        stage = next(item for item in plan(self.recipe, self.fixed, self.budget).stages if item.name == self.stage)
        found: dict[str, Any] = {}
        for item in self.dimensions:
            value: Any = dump(stage.config)
            for part in item.key.split(".")[1:]:
                value = value.get(part) if isinstance(value, dict) else None
            if not item.holds(value):
                return None
            found[item.key] = value if item.choices or item.whole else float(value)
        return found

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """The checked recipe with these values of the varied keys. Raises ConfigError as `plan` does."""
        words: dict[str, Any] = {}
        for key, value in params.items():
            words = merge(words, _nested(key, value))
        return plan(self.recipe, merge(self.fixed, words), self.budget)


def read_space(recipe: Path, words: Sequence[str], budget: str | None, stage: str | None = None) -> Space:
    """Read the settings of a search and check every value that its ends name. Raises ConfigError.

    With `stage` commas in settings of other stages are text as in every run.
    """
    dimensions, fixed = [], []
    for word in words:
        elsewhere = stage is not None and word.partition("=")[0].strip().partition(".")[0] != stage
        found = None if elsewhere and not RANGE.fullmatch(word.partition("=")[2].strip()) else _dimension(word)
        if found is None:
            fixed.append(word)
        else:
            dimensions.append(found)
    if not dimensions:
        where = f"nothing to search in stage {stage}" if stage else "nothing to search"
        raise ConfigError(where, expected="a range or a choice", fix="Write stage.key=LOW..HIGH or stage.key=a,b,c.")
    _check_keys([item.key for item in dimensions], [word.partition("=")[0].strip() for word in fixed])
    stages = sorted({*([stage] if stage else []), *(item.key.partition(".")[0] for item in dimensions)})
    if len(stages) > 1:
        raise ConfigError("a search varies keys of one stage", found=f"keys of {', '.join(stages)}", fix="Search one stage after another.")
    space = Space(recipe, budget, parse_overrides(fixed), stages[0], tuple(dimensions))
    space = replace(space, dimensions=tuple(_typed(space)))
    middle = {item.key: item.ends[0] for item in dimensions}
    for item in dimensions:
        for value in item.ends:
            space.plan(middle | {item.key: value})
    return space


def _dimension(word: str) -> Dimension | None:
    key, _, text = word.partition("=")
    key, text = key.strip(), text.strip()
    if found := RANGE.fullmatch(text):
        low, high, scale = float(found[1]), float(found[2]), found[3]
        whole = bool(WHOLE.fullmatch(found[1]) and WHOLE.fullmatch(found[2]))
        if not low < high or (scale == "log" and low <= 0):
            raise ConfigError(f"range of {key}", found=text, expected="LOW < HIGH, and LOW above 0 on a logarithmic scale")
        return Dimension(key, low, high, whole, scale == "log" or (scale is None and not whole and low > 0), scale == "linear")
    if "," not in text or text[:1] in "[{\"'":
        return None
    choices = tuple(parse_yaml(part, word) for part in text.split(","))
    if any(value is None or isinstance(value, dict | list) for value in choices) or len(set(map(repr, choices))) < len(choices):
        raise ConfigError(f"choices of {key}", found=text, expected="different single values between the commas")
    return Dimension(key, choices=choices)


def _typed(space: Space) -> Iterator[Dimension]:
    """Ranges such as 0..1 of a key that holds any number are not whole."""
    stage = next((item for item in plan(space.recipe, space.fixed, space.budget).stages if item.name == space.stage), None)
    types = {f"{space.stage}.{field.path}": field.type for field in describe(type(stage.config))} if stage else {}
    for item in space.dimensions:
        any_number = item.whole and "float" in types.get(item.key, "")
        yield replace(item, whole=False, log=item.log or (item.low > 0 and not item.linear)) if any_number else item


def _check_keys(searched: Sequence[str], fixed: Sequence[str]) -> None:
    """ConfigError when two settings say something about the same key or one about a section around another's."""
    names = [*searched, *fixed]
    for place, key in enumerate(searched):
        for other in (*names[:place], *names[place + 1 :]):
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise ConfigError(f"{key} is searched, and {other} is set beside it", fix="Leave one of the two out.")


def _nested(key: str, value: object) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value)} if rest else {first: value}


def settings(params: Mapping[str, Any]) -> Iterator[str]:
    """The values as `key=value` words."""
    return (f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in params.items())
