"""Made-up names: never one that a page mentions, the same for the same seed, in the style of the real ones."""

import re

from luyen.core.records import Document
from luyen.synthesis.invent import invented_names
from luyen.tasks.entries import Entry


def entry(name: str, document: str) -> Entry:
    return Entry("function", name, "It does it.", {}, "", "", document)


def test_a_name_that_its_page_mentions_is_not_invented() -> None:
    # Moving alpha_one to b or beta_two to a is all that can be moved, and the pages mention both (as inherited, say).
    entries = [entry("a.alpha_one", "a"), entry("b.beta_two", "b")]
    mentioned = [Document("a", "alpha_one(x), and beta_two(x)"), Document("b", "beta_two(x), and alpha_one(x)")]
    assert not {"a.beta_two", "b.alpha_one"} & set(invented_names(mentioned, entries, 10, seed=0))
    silent = [Document("a", "alpha_one(x)"), Document("b", "beta_two(x)")]
    assert {"a.beta_two", "b.alpha_one"} & set(invented_names(silent, entries, 10, seed=0))


def test_joined_names_are_new_words_everywhere() -> None:
    # Four ways to join; two give the entries themselves and one stands in the page.
    entries = [entry("a.gorgeous_first", "a"), entry("a.splendid_second", "a")]
    documents = [Document("a", "gorgeous_first(x) splendid_second(x)"), Document("b", "See gorgeous_second.")]
    assert invented_names(documents, entries, 10, seed=0) == ["a.splendid_first"]


def test_classes_are_mixed_with_classes_and_seeds_decide() -> None:
    entries = [entry(name, "a") for name in ("a.RedBox", "a.BlueLamp", "a.open_box", "a.close_lamp")]
    documents = [Document("a", "RedBox BlueLamp open_box close_lamp")]
    names = invented_names(documents, entries, 4, seed=3)
    assert names and names == invented_names(documents, entries, 4, seed=3)
    for name in names:
        assert re.fullmatch(r"a\.([A-Z][a-z]+[A-Z][a-z]+|[a-z]+_?[a-z]+)", name), name
    assert invented_names(documents, [], 4, seed=3) == []
