"""The faster encoder gives the ids of tokenizers for every text, and stays away where that is not certain."""

from __future__ import annotations

import copy
import json
import sys
import threading
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from luyen.core.errors import DataError
from luyen.tokenizer import bytelevel, fast, load
from luyen.tokenizer.bytelevel import PRETOKENIZERS, SPELLING, composed, spell, unspell
from luyen.tokenizer.folder import Facts
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

TEXTS = [
    "It's the module that reads files; they'RE 12345 lines,  and 'ſ is a letter.\r\n\r\n\tdef read(path): return open(path)\n",
    "Hà Nội là thủ đô của Việt Nam. Mô hình ngôn ngữ học từ dữ liệu tiếng Việt.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Модель учится.",
    "for line in lines:\n    print(line)\n\n\n        <|end|> </s> [INST] 漢字 안녕 हिन्दी 👩‍👩‍👧 ½ ²",
]
PIECES = [
    *TEXTS[0].split(" "), *TEXTS[1].split(" "), *TEXTS[2].split(" "),
    "<|end|>", "<|bos|>", "</s>", "<0x41>", "\u200b", "\u200d", "\ufeff", "\x00", "\r\n", "\n", " ", "   ", "\t", "\u00a0", "\u3000",
    "\u2028", "e\u0302\u0323", "\u0323\u0302", "\u1e69\u0323", "\u212b", "\u0958", "\uac00\u11a8", "\U000105d2\u0307",
    "'S", "'ſ", "'ll", "’t", "½", "٣", "Ⅷ", "😉", "Ġ", "Ã",
]  # fmt: skip
texts = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join),
)
Change = Callable[[dict[str, Any]], object]


def learnt(pretokenizer: str, normalise: str = "nfc") -> Tokenizer:
    config = TokenizerConfig(vocab_size=700, min_frequency=1, pretokenizer=pretokenizer, normalise=normalise)
    return train(TEXTS, config)


def parsed(tokenizer: Tokenizer) -> dict[str, Any]:
    return dict(json.loads(tokenizer._whole.to_str()))


def built_in_cut(description: dict[str, Any]) -> None:
    description["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def every_split(description: dict[str, Any]) -> None:
    """As transformers converts vocabularies of tiktoken: a merge for every two entries that make a third, entries looked up first."""
    vocabulary = description["model"]["vocab"]
    names = [name for name, _ in sorted(vocabulary.items(), key=lambda item: item[1])[264:]]
    merges: list[list[str]] = []
    for name in names:
        splits = [[name[:cut], name[cut:]] for cut in range(1, len(name))]
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    description["model"]["merges"] = merges
    description["model"]["ignore_merges"] = True


def variants() -> dict[str, Tokenizer]:
    found = {f"{name} {form}": learnt(name, form) for name in PRETOKENIZERS for form in ("nfc", "none")}
    for name, change in {"built in": built_in_cut, "every split": every_split}.items():
        description = parsed(found["gpt2 none"])
        change(description)
        found[name] = Tokenizer(description, Facts())
    return found


KINDS = variants()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster encoder from the first text on."""
    monkeypatch.setattr(load, "ENOUGH", 0)


def by_tokenizers(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer._plain.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_ids_are_those_of_tokenizers(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    assert tokenizer._fast is not None
    ids = tokenizer.encode(text)
    assert ids == by_tokenizers(tokenizer, text)
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    assert not set(ids) & set(tokenizer.control.values())


def test_both_libraries_know_the_same_letters_digits_and_white_space() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert all(fast.same_letters.__wrapped__("".join(characters[start : start + 16_384])) for start in range(0, len(characters), 16_384))


def test_every_character_is_composed_as_tokenizers_does() -> None:
    reference = tokenizers.normalizers.NFC()
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) != "Cs" and not unicodedata.is_normalized("NFC", chr(code)):
            assert composed(chr(code)) == reference.normalize_str(chr(code))


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_texts_are_composed_as_tokenizers_does(text: str) -> None:
    assert composed(text) == tokenizers.normalizers.NFC().normalize_str(text)


def test_older_tables_of_unicode_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    bytelevel._python_knows_enough.cache_clear()
    monkeypatch.setattr(bytelevel.unicodedata, "is_normalized", lambda form, text: True)
    assert composed("e\u0302") == "ê"
    monkeypatch.undo()
    bytelevel._python_knows_enough.cache_clear()


def test_bytes_are_spelt_and_read_back() -> None:
    assert unspell(spell(bytes(range(256)))) == bytes(range(256))
    assert spell(b" a\n") == "ĠaĊ"
    assert sorted(SPELLING) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("text", [" " * 99_999 + "x", "a" * 400_000, "\n" * 100_000, "\t \n" * 100_000, "é-" * 100_000, "12" * 100_000])
def test_long_runs_give_the_same_ids(text: str) -> None:
    tokenizer = KINDS["qwen2 nfc"]
    assert tokenizer.encode(text) == by_tokenizers(tokenizer, text)


def test_white_space_on_which_tiktoken_fails_is_left_to_tokenizers() -> None:
    tokenizer = KINDS["qwen2 nfc"]
    encoder = tokenizer._fast
    assert encoder is not None
    assert encoder.takes(" " * 99_999) and encoder.takes("a " * 100_000)
    for text in (" " * 100_000, "x" + "\t\n" * 50_000 + "y"):
        assert not encoder.takes(text)
        assert tokenizer.encode_batch(["a b", text]) == [by_tokenizers(tokenizer, "a b"), by_tokenizers(tokenizer, text)]


def test_many_texts_are_shared_among_threads_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["qwen2 nfc"]
    monkeypatch.setattr(fast, "PART", 100)
    monkeypatch.setattr(fast.os, "cpu_count", lambda: 3)
    seen: set[str] = set()
    monkeypatch.setattr(fast, "composed", lambda text: (seen.add(threading.current_thread().name), text)[1])
    several = [f"{number} {text}" for number in range(40) for text in TEXTS]
    expected = [by_tokenizers(tokenizer, text) for text in several]
    assert tokenizer.encode_batch(several) == expected
    assert any("ThreadPool" in name for name in seen)
    seen.clear()
    monkeypatch.setenv(load.PARALLELISM, "false")
    assert tokenizer.encode_batch(several) == expected
    assert seen == {threading.main_thread().name}
    assert tokenizer.encode_batch([]) == []


def test_lone_surrogates_are_named() -> None:
    with pytest.raises(DataError, match=r"U\+D800 at position 3"):
        KINDS["qwen2 nfc"].encode("abc\ud800")
    with pytest.raises(DataError, match="surrogate"):
        KINDS["qwen2 nfc"].encode_batch(["fine", "\udfff"])


def test_a_few_texts_do_not_make_the_faster_encoder_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ENOUGH", 10)
    tokenizer = learnt("gpt2")
    tokenizer.encode("12345")
    assert "_fast" not in vars(tokenizer)
    tokenizer.encode_batch(["123", "45"])
    assert isinstance(vars(tokenizer)["_fast"], fast.Encoder)


def other_order(description: dict[str, Any]) -> None:
    vocabulary = description["model"]["vocab"]
    first, second = ("".join(description["model"]["merges"][place]) for place in (0, 1))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def used_before_it_is_made(description: dict[str, Any]) -> None:
    merges, vocabulary = description["model"]["merges"], description["model"]["vocab"]
    place = next(place for place, (left, _) in enumerate(merges) if len(left) > 1)
    longer = merges.pop(place)
    merges.insert(0, longer)
    names = [name for name in vocabulary if vocabulary[name] < 264] + ["".join(merge) for merge in merges]
    description["model"]["vocab"] = {name: number for number, name in enumerate(names)}


def never_itself(description: dict[str, Any]) -> None:
    """abc by a and bc, although ab is joined before bc: the list never gives it, tiktoken would."""
    vocabulary = description["model"]["vocab"]
    for left, right in (("€", "a"), ("a", "q"), ("q", "z"), ("a", "qz")):
        vocabulary.pop(left + right, None)
    size = max(vocabulary.values()) + 1
    for number, (left, right) in enumerate((("a", "q"), ("q", "z"), ("a", "qz"))):
        vocabulary[left + right] = size + number
        description["model"]["merges"].append([left, right])


def unlisted_entry(description: dict[str, Any]) -> None:
    description["model"]["vocab"]["zqz"] = max(description["model"]["vocab"].values()) + 1
    description["model"]["ignore_merges"] = True


def missing_byte(description: dict[str, Any]) -> None:
    description["model"]["merges"] = []
    description["model"]["vocab"] = {name: number for name, number in description["model"]["vocab"].items() if number < 263}


UNFIT: dict[str, Change] = {
    "order": other_order,
    "before": used_before_it_is_made,
    "never": never_itself,
    "unlisted": unlisted_entry,
    "byte": missing_byte,
    "dropout": lambda description: description["model"].update(dropout=0.1),
    "suffix": lambda description: description["model"].update(end_of_word_suffix="</w>"),
    "lower case": lambda description: description.update(normalizer={"type": "Lowercase"}),
    "cut": lambda description: description["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}),
    "string": lambda description: description["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": " "}),
    "inverted": lambda description: description["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
    "prefix": lambda description: description["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "no cut": lambda description: description.update(pre_tokenizer=None),
    "twice": lambda description: description["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
    "words": lambda description: description.update(
        model={"type": "WordLevel", "vocab": {name: number for number, name in enumerate(description["model"]["vocab"])}, "unk_token": "a"}
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_vocabularies_that_are_not_certain_stay_with_tokenizers(case: str) -> None:
    description = copy.deepcopy(parsed(KINDS["qwen2 nfc"]))
    UNFIT[case](description)
    if case == "byte":
        description["model"]["vocab"].pop("Ń", None)
    tokenizer = Tokenizer(description, Facts())
    assert tokenizer._fast is None
    if case != "dropout":
        assert tokenizer.encode("aqz the zqz module") == by_tokenizers(tokenizer, "aqz the zqz module")


def test_white_space_that_is_cut_out_first_stays_with_tokenizers(added: Callable[..., dict[str, Any]]) -> None:
    description = parsed(KINDS["qwen2 nfc"])
    description["added_tokens"].append({**added("    ", special=False), "id": max(description["model"]["vocab"].values()) + 1})
    assert Tokenizer(description, Facts())._fast is None


def test_an_entry_that_tokenizers_never_gives_would_differ() -> None:
    """Why each entry is checked alone: the example above, encoded by both."""
    description = copy.deepcopy(parsed(KINDS["qwen2 nfc"]))
    never_itself(description)
    vocabulary = description["model"]["vocab"]
    ranks = {unspell(name): number for name, number in vocabulary.items() if number >= 8}
    core = tiktoken.Encoding("x", pat_str=PRETOKENIZERS["qwen2"], mergeable_ranks=ranks, special_tokens={})
    assert core.encode_ordinary("aqz") != by_tokenizers(Tokenizer(description, Facts()), "aqz")


def test_libraries_that_know_other_letters_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    fast.same_letters.cache_clear()
    monkeypatch.setattr(fast, "_CLASSES", (r"\p{Lu}|\p{Ll}|[^a]",))
    monkeypatch.setattr(fast.tokenizers, "Regex", lambda regex: tokenizers_regex(r"\p{Lu}"))
    assert not fast.same_letters()
    assert fast.encoder(KINDS["qwen2 nfc"]._plain) is None
    monkeypatch.undo()
    fast.same_letters.cache_clear()
    assert fast.same_letters()


tokenizers_regex = tokenizers.Regex
