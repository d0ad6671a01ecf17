"""Patterns of names as Python's re reads them, and those that would hang it."""

import re

import pytest

from luyen.adapters.patterns import full_match

NAMES = [f"model.layers.{layer}.{own}" for layer in (0, 1, 12) for own in ("self_attn.q_proj", "mlp.down_proj", "mlp.experts.3.up_proj")]
PATTERNS = [
    "q_proj", "model.layers.0.self_attn.q_proj", r"layers\.1\..*", r".*\.layers\.\d+\..*(q|down)_proj", r"^model\.layers\.12\..*$",
    "^q_proj", r"layers\.[01]\.(mlp|self_attn)\.(?:\w+_)?proj", "(a|)q_proj", "mlp.down_proj|q_proj", "up_proj?", "..proj",
    r"(.*\.)?up_proj", r"layers.1+.mlp", r"experts\.[^0-2]\.up_proj", r".*\.1\d*\.mlp\.[\w.]*", "",
    re.escape("model.layers.0.mlp.down_proj"),
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_does_in_python(pattern: str) -> None:
    assert [full_match(pattern, name) for name in NAMES] == [bool(re.match(rf"(.*\.)?({pattern})$", name)) for name in NAMES]


@pytest.mark.parametrize("pattern", ["(a|a)" * 60 + "b", ".*" * 60 + "b", "(a?)" * 60 + "b", "a*" * 60 + "b", "((a|.)|.a?)" * 40 + "b"])
def test_what_would_hang_is_read_at_once(pattern: str) -> None:
    assert not full_match(pattern, "a" * 80) and full_match(pattern, "a" * 60 + "b") in (True, False)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a|aa)*b", "(", ")", "((a)", "a)b", "a{9}", "(ab){2,}", r"(a)\1", "(?=a)", "a**", "[z-a]", "a\n", "(" * 40, "a" * 9999],
)
def test_others_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="."):
        full_match(pattern, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
