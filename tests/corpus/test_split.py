"""Held-out text: what a section is, and that nothing stands on both sides."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luyen.corpus.split import held_out, held_out_sections, may_be_held_out, sections

TEXT = """# title

Intro.

## Functions

f(x)
    Body of f.

    More of f, still the same entry.

g(x)
    Body of g.

```
code

more code
```

end"""


def test_sections_begin_at_headings_and_entries_only() -> None:
    cut = sections(TEXT, 1)
    assert [section.text.split("\n")[0] for section in cut] == ["# title", "## Functions", "g(x)", "```", "end"]
    assert "More of f" in cut[1].text
    assert [section.heading for section in cut] == ["title", "Functions", "Functions", "Functions", "Functions"]
    assert len(sections(TEXT, 10_000)) == 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["# h", "text", "    indented", "```", "f(x)\n    doc", "a\nb"]), min_size=1, max_size=20),
    st.integers(1, 60),
)
def test_sections_joined_are_the_text(blocks: list[str], characters: int) -> None:
    text = "\n\n".join(blocks)
    assert "\n\n".join(section.text for section in sections(text, characters)) == text


@pytest.mark.parametrize("text", ["```\n\n" + "a\n\n" * 20_000, "# h\n\n" * 20_000])
def test_open_fences_and_headings_in_a_row_cost_linear_time(text: str) -> None:
    started = time.process_time()
    assert len(sections(text)) == 1
    assert time.process_time() - started < 2


def test_share_and_minimum() -> None:
    hashes = [f"{index:064x}" for index in range(4000)]
    share = len(held_out(hashes, 0.05, 0)) / 4000
    assert abs(share - 0.05) < 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert len(held_out(hashes[:15], 0.0001, 0)) == 1
    assert held_out(hashes[:4], 0.0001, 0) == set() and held_out(hashes, 0, 0) == set()
    assert held_out(hashes, 0.05, 1) != held_out(hashes, 0.05, 0)


def test_choice_depends_on_the_text_alone() -> None:
    hashes = [f"{index:064x}" for index in range(500)]
    chosen = {hashes[index] for index in held_out(hashes, 0.1, 3)}
    backwards = hashes[::-1]
    assert {backwards[index] for index in held_out(backwards, 0.1, 3)} == chosen


def test_sections_with_a_twin_are_never_held_out() -> None:
    hashes = [f"{index:064x}" for index in range(40)]
    hashes[1] = hashes[0]
    bands = np.arange(40, dtype=np.uint64)[:, None].repeat(3, axis=1)
    bands[3, 2] = bands[2, 2]
    chosen = held_out_sections(hashes, [True] * 40, bands, 0.99, 0)
    assert chosen and not chosen & {0, 1, 2, 3}
    assert held_out_sections(hashes, [False] * 40, bands, 0.99, 0) == set()


def test_beginnings_and_short_sections_stay() -> None:
    cut = sections("# a\n\n" + "x " * 300 + "\n\n## b\n\n" + "y " * 300 + "\n\n## c\n\nshort", 400)
    assert may_be_held_out(cut) == [False, True, False]
