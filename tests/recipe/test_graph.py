"""Recipes are checked whole before any work: keys, verbs, references, budgets, overrides."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from toy import recipe, write_recipe  # noqa: E402

from luyen.core.errors import ConfigError  # noqa: E402
from luyen.recipe.graph import builtin_recipes, find_recipe, plan  # noqa: E402


def test_stages_follow_their_inputs_in_whatever_order_they_are_written(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["stages"] = dict(reversed(values["stages"].items()))
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    names = [stage.name for stage in plan(path, {}).stages]
    assert names.index("corpus") < names.index("tokenizer") < names.index("base") < names.index("chat") < names.index("before_after")
    inputs = {stage.name: stage.inputs for stage in plan(path, {}).stages}
    assert set(inputs["before_after"]) == {"base", "chat", "questions", "corpus"}


def test_budgets_and_overrides_lie_over_the_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, steps=4)

    def base_steps(**arguments: object) -> int:
        made = plan(path, **arguments)  # type: ignore[arg-type]
        return next(stage.config.train.steps for stage in made.stages if stage.name == "base")

    assert base_steps(overrides={}) == 4
    assert base_steps(overrides={}, budget="larger") == 6
    assert base_steps(overrides={"base": {"train": {"steps": 9}}}, budget="larger") == 9
    resolved = plan(path, {}, "larger").source
    assert resolved["stages"]["base"]["train"]["steps"] == 6
    wanted = plan(path, {}, "larger").stages
    path.write_text(yaml.safe_dump(dict(resolved), sort_keys=False))
    assert plan(path, {}).stages == wanted, "the resolved recipe makes the same plan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": {"base": {"lerning": 1}}}, "unknown key 'lerning'"),
        ({"stages": {"base": {"train": {"step": 1}}}}, "Did you mean 'train.steps'?"),
        ({"stages": {"base": {"train": {"steps": "many"}}}}, "found 'many'"),
        ({"stages": {"base": {"do": "pretran"}}}, "Did you mean 'pretrain'?"),
        ({"stages": {"base": {"do": None}}}, "has no verb"),
        ({"version": 2}, "version; found 2"),
        ({"stagess": {}}, "Did you mean 'stages'?"),
        ({"budgets": {"5m": {"bse.train.steps": 1}}}, "Did you mean 'base'?"),
        ({"stages": {"a b": {"do": "crawl"}}}, "stage name 'a b'"),
        ({"stages": {"tokenizer": {"data": "base"}}}, "wait for each other"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    from luyen.core.config import merge

    path = write_recipe(tmp_path)
    path.write_text(yaml.safe_dump(merge(recipe(tmp_path / "pages"), change), sort_keys=False))
    with pytest.raises(ConfigError) as error:
        plan(path, {}, "5m" if "budgets" in change else None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    for overrides, budget, message in (
        ({"bas": {"seed": 1}}, None, "'base'"),
        ({"base": 3}, None, "base.key=value"),
        ({}, "huge", "small, larger"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(path, overrides, budget)
    with pytest.raises(ConfigError, match="Did you mean 'quickstart'"):
        find_recipe("quickstrat")
    with pytest.raises(ConfigError, match="no recipe file"):
        find_recipe("missing.yaml")


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_built_in_recipes_are_right_at_every_budget(name: str) -> None:
    path = builtin_recipes()[name]
    assert len(path.read_text().splitlines()) <= 40
    for budget in [None, *yaml.safe_load(path.read_text()).get("budgets", {})]:
        assert plan(path, {}, budget).stages
