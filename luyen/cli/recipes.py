"""`luyen recipes`: what can be run by name."""

from __future__ import annotations

import click

from luyen.cli.arguments import plain_command
from luyen.core.config import load, read_yaml
from luyen.recipe.graph import Recipe, builtin_recipes


def command(name: str) -> click.Command:
    """The command `recipes`."""
    return plain_command(name, _list, "List the recipes that come with Luyện, with their budgets.", [])


def _list() -> None:
    for name, path in builtin_recipes().items():
        recipe = load(Recipe, read_yaml(path), str(path))
        budgets = f"  [--budget {' | '.join(recipe.budgets)}]" if recipe.budgets else ""
        print(f"{name}: {recipe.about}{budgets}\n    {path}")
