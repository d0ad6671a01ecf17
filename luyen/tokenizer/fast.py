"""The same ids several times faster: tiktoken behind vocabularies of which it is certain that it gives them.

tiktoken joins whatever two neighbours spell an entry, the entry with the smallest id first; tokenizers joins the pairs that the file
lists, in the order of the list. Both give the same ids for every text when ids follow the list and every entry, encoded alone by the
list in order, becomes itself. For then, up to any place of the list, both have made the same joins; and where an entry could appear,
the stretch that it covers has been joined exactly as it is alone, so both see the same last pair and no other. `encoder` checks this,
the way text is cut and the normal form, once, and gives None for a vocabulary that does not pass.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tiktoken
import tokenizers
from tokenizers import pre_tokenizers

from luyen.tokenizer.bytelevel import PRETOKENIZERS, SPELLING, composed, unspell

PART = 1 << 16
"""Characters that a thread encodes before it takes the next."""
MOST_THREADS = 8
"""More wait for one another, since only one makes Python's lists at a time."""
LONGEST_SPACE = 100_000
"""White space characters in a row that the regular expressions of tiktoken are given; they fail at a million."""
_SPACE = re.compile(r"\s+")
_CLASSES = (r"\p{L}", r"\p{N}", r"\s")
_NEW_LETTERS = "\u0560\u08c7\u088e\U00010570\U00011f02\U0002ebf0\u1c89\U00010d4a\U00016130\u088f\U000323b0\U00010940"
"""Letters and digits that Unicode 11 to 17 added."""


class Encoder:
    """Encodes texts of which `takes` is true."""

    def __init__(self, core: tiktoken.Encoding, normal_form: bool) -> None:
        self._core = core
        self._normal_form = normal_form

    def takes(self, text: str) -> bool:
        """Whether the text is free of stretches of white space so long that tiktoken fails on them."""
        return len(text) < LONGEST_SPACE or not any(found.end() - found.start() >= LONGEST_SPACE for found in _SPACE.finditer(text))

    def encode(self, text: str) -> list[int]:
        """Ids of a text without lone surrogates."""
        return self._core.encode_ordinary(composed(text) if self._normal_form else text)

    def encode_batch(self, texts: Sequence[str], parallel: bool) -> list[list[int]]:
        """`encode` of many texts, in threads where there is enough for several."""
        parts = _parts(texts)
        threads = min(len(parts), os.cpu_count() or 1, MOST_THREADS) if parallel else 1
        if threads < 2:
            return self._encode_all(texts)
        with ThreadPoolExecutor(threads) as pool:
            return [ids for part in pool.map(self._encode_all, parts) for ids in part]

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    parts, start, size = [], 0, 0
    for place, text in enumerate(texts, 1):
        size += len(text)
        if size >= PART:
            parts.append(texts[start:place])
            start, size = place, 0
    return [*parts, texts[start:]] if start < len(texts) else parts


def encoder(plain: tokenizers.Tokenizer) -> Encoder | None:
    """tiktoken behind a tokenizer that knows no control token, where it gives the same ids for every text; else None."""
    description = json.loads(plain.to_str())
    pattern = _pattern(description)
    ranks = _ranks(description) if pattern is not None else None
    if pattern is None or ranks is None or not same_letters():
        return None
    core = tiktoken.Encoding("luyen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return Encoder(core, normal_form=description["normalizer"] is not None)


def _pattern(description: Mapping[str, Any]) -> str | None:
    """The regular expression that cuts text, when nothing but it and NFC acts before the merges."""
    if any(not token["content"].strip() for token in description["added_tokens"]):
        return None  # white space that is cut out before anything else
    if description["normalizer"] not in (None, {"type": "NFC"}):
        return None
    cut = description["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers") if cut.get("type") == "Sequence" else [cut]
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] is bool(before):
        return None
    if not before:
        return PRETOKENIZERS["gpt2"]  # what tokenizers has built in under this name
    split = before[0]
    known = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in PRETOKENIZERS.values()]
    return str(split["pattern"]["Regex"]) if len(before) == 1 and split in known else None


def _ranks(description: Mapping[str, Any]) -> dict[bytes, int] | None:
    """Bytes to id of every entry that text can give, when smaller ids are joined first and each entry becomes itself."""
    model = description["model"]
    if model["type"] != "BPE" or model["dropout"] or model["byte_fallback"]:
        return None
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    vocabulary: dict[str, int] = model["vocab"]
    order = {letter: -1 for letter in SPELLING if letter in vocabulary}  # the entries so far, with their place in the order of joins
    merges, out_of_order, newest = [], set(), -1
    for left, right in model["merges"]:
        number = vocabulary.get(left + right)
        if number is None or number < newest:
            return None
        newest = number
        if max(order.get(left, number), order.get(right, number)) < number:
            order[left + right] = number
            merges.append([left, right])
        else:
            out_of_order.add(left + right)  # nothing comes of this pair when another that is in order makes the same entry
    if not out_of_order <= order.keys():
        return None
    hidden = {token["content"] for token in description["added_tokens"]}
    if len(order) < len(SPELLING) or (model["ignore_merges"] and not vocabulary.keys() <= order.keys() | hidden):
        return None
    if not _each_becomes_itself({**model, "merges": merges}, order):
        return None
    return {unspell(name): vocabulary[name] for name in order}


def _each_becomes_itself(model: Mapping[str, Any], names: Mapping[str, int]) -> bool:
    bare = {"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}}
    merger = tokenizers.Tokenizer.from_str(json.dumps(bare))
    found = merger.encode_batch_fast(list(names), add_special_tokens=False)
    return all(encoding.ids == [model["vocab"][name]] for name, encoding in zip(names, found, strict=True))


@functools.cache
def same_letters(characters: str = _NEW_LETTERS) -> bool:
    """Whether both libraries, as installed, find the same letters, digits and white space among some characters."""
    for regex in _CLASSES:
        splitter = pre_tokenizers.Split(tokenizers.Regex(regex), behavior="removed", invert=True)
        theirs = "".join(part for part, _ in splitter.pre_tokenize_str(characters))
        probe = tiktoken.Encoding("probe", pat_str=regex, mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={})
        if bytes(probe.encode_ordinary(characters)).decode() != theirs:
            return False
    return True
