"""Names that tutorials use are answered with the name here, which must exist."""

import pytest

from luyen.core.config import _keys, load
from luyen.core.errors import ConfigError
from luyen.core.old_names import OLD_NAMES, OLD_VALUES, WITHOUT
from luyen.recipe.configs import SFTConfig
from luyen.recipe.preference_configs import PreferenceConfig

GIVEN = {"model": "m", "data": "d"}


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("lora_alpha", "lora_alpha is adapter.alpha=..., beside adapter.method=lora, here"),
        ("per_device_train_batch_size", "per_device_train_batch_size is batch.rows here"),
        ("max_seq_length", "max_seq_length is batch.length here"),
        ("target_modules", "target_modules is adapter.targets=..., beside adapter.method=lora, here"),
        ("load_in_4bit", "load_in_4bit is quantize=nf4 here"),
        ("quantization", "quantization is quantize=nf4, fp4 or int8 here"),
        ("num_train_epochs", r"is train.steps, counted in updates, here. Steps = epochs x rows / \(batch.rows x train.accumulation x"),
        ("packing", "Leave it out: rows are always packed"),
        ("optim", "optim is train.optimizer.name, with .* paged-adamw8bit for paged_adamw_8bit, here"),
        ("learning_rate", "Did you mean 'train.optimizer.learning_rate'"),
    ],
)
def test_a_tutorials_name_is_answered_with_the_one_here(key: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*{told}"):
        load(SFTConfig, {**GIVEN, key: 1}, "luyen sft")


def test_inside_a_section_too() -> None:
    with pytest.raises(ConfigError, match="unknown key 'train.gradient_accumulation_steps'.*is train.accumulation here"):
        load(SFTConfig, {**GIVEN, "train": {"gradient_accumulation_steps": 4}}, "luyen sft")


@pytest.mark.parametrize(("value", "here"), OLD_VALUES.items())
def test_a_tutorials_value_is_answered_with_the_one_here(value: str, here: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{here}'.*\. {value} is {here} here\."):
        where = {"quantize": value} if value in ("4bit", "8bit") else {"train": {"optimizer": {"name": value}}}
        load(SFTConfig, {**GIVEN, **where}, "luyen sft")
    with pytest.raises(ConfigError) as told:
        load(SFTConfig, {**GIVEN, "train": {"schedule": {"name": value}}}, "luyen sft")
    assert "here" not in str(told.value), "a schedule has no such value"


def test_every_answer_names_a_key_that_there_is() -> None:
    known = {*_keys(SFTConfig), *_keys(PreferenceConfig)}
    for name, here in OLD_NAMES.items():
        key = here.partition("=")[0].partition(",")[0]
        assert key in known or key == "--out DIR", name
    assert not OLD_NAMES.keys() & WITHOUT.keys()
