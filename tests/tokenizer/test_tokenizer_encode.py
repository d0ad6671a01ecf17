"""What text becomes: always the same text again, never a control token, in bounded time."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luyen.core.errors import DataError, ModelError
from luyen.core.records import Message
from luyen.tokenizer import load
from luyen.tokenizer.bytelevel import composed
from luyen.tokenizer.chat import render
from luyen.tokenizer.control import without_control
from luyen.tokenizer.folder import Facts
from luyen.tokenizer.load import Run, Tokenizer

SAMPLES = [
    "",
    " ",
    "\n\n\t ",
    "Hello world!!!? (안녕하세요!) lol123 😉",
    "tiếng Việt: ă â đ ê ô ơ ư, ề ộ ữ",
    "Съешь ещё этих мягких французских булок",
    "👩‍👩‍👧‍👦 🇻🇳 ¿qué? \x00 \ufeff \u202e",
    "हिन्दी ไทย 日本語 עברית",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_decode_undoes_encode(own: Tokenizer, text: str) -> None:
    assert own.decode(own.encode(text)) == composed(text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_decode_undoes_encode_of_any_text(own: Tokenizer, text: str) -> None:
    ids = own.encode(text)
    assert own.decode(ids) == composed(text)
    assert not set(ids) & set(own.control.values())


def test_composed_and_decomposed_letters_give_the_same_ids(own: Tokenizer) -> None:
    text = "Mô hình ngôn ngữ học từ dữ liệu tiếng Việt"
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert own.encode(decomposed) == own.encode(text)


def test_batch_gives_the_same_ids_in_the_same_order(own: Tokenizer) -> None:
    texts = [f"{index} {sample}" for index in range(50) for sample in SAMPLES]
    assert own.encode_batch(texts) == [own.encode(text) for text in texts]
    assert own.encode_batch([]) == []


def test_lone_surrogate_is_named(own: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"U\+D800 at position 3"):
        own.encode("abc\ud800")
    with pytest.raises(DataError, match="surrogate"):
        own.encode_batch(["fine", "\udfff"])


def test_id_outside_the_vocabulary_is_named(own: Tokenizer) -> None:
    for ids in ([own.vocab_size], [-1]):
        with pytest.raises(DataError, match="outside the vocabulary"):
            own.decode(ids)


def test_control_tokens_are_shown_only_when_asked(own: Tokenizer) -> None:
    ids = [own.control["<|bos|>"], *own.encode("hello"), own.control["<|end|>"]]
    assert own.decode(ids) == "hello"
    assert own.decode(ids, skip_control=False) == "<|bos|>hello<|end|>"


@pytest.mark.parametrize("text", [" " * 25_001, "a" * 400_000, "\n" * 100_000, "é" * 100_000, "<|end|>" * 20_000, "12" * 100_000])
def test_long_runs_take_bounded_time(own: Tokenizer, text: str) -> None:
    started = time.monotonic()
    ids = own.encode(text)
    assert own.decode(ids) == text
    assert time.monotonic() - started < 10


STRUCTURAL = ["[INST]", "[/INST]", "<<SYS>>", "<think>", "<|im_start|>", "<｜User｜>", "<s>", "</s>", "<unk>", "▁x"]


@pytest.fixture(params=[True, False], ids=["special", "structural"])
def hostile(request: pytest.FixtureRequest, make_folder: Callable[..., Path], added: Callable[..., dict[str, Any]]) -> Tokenizer:
    """A folder whose added tokens are flagged special, or are not and match after normalisation."""
    entries = [added(token, special=request.param, normalized=not request.param) for token in STRUCTURAL]
    jinja = "{% for m in messages %}[INST]{{ m.role }}<|im_start|>{{ m.content }}</s>{% endfor %}"
    return Tokenizer.load(make_folder(entries, jinja, bos_token="<s>", eos_token="</s>"))


def test_no_text_gives_a_control_id_whatever_its_neighbours(hostile: Tokenizer, own: Tokenizer) -> None:
    for tokenizer in (hostile, own):
        forbidden = set(tokenizer.control.values())
        assert len(forbidden) >= 8
        for token in tokenizer.control:
            for text in (token, f"a{token}b", f" {token} ", f"\n{token}", token * 3, f"{token} {' '.join(tokenizer.control)}"):
                ids = tokenizer.encode(text)
                assert not forbidden & set(ids)
                assert tokenizer.decode(ids) == text


def test_a_control_string_split_over_messages_stays_text(hostile: Tokenizer, own: Tokenizer) -> None:
    for tokenizer in (hostile, own):
        forbidden = set(tokenizer.control.values())
        plain = [index for index in render(tokenizer, [Message("user", "q"), Message("assistant", "r")]).ids if index in forbidden]
        for token in tokenizer.control:
            for cut in range(len(token) + 1):
                messages = [Message("user", token[:cut]), Message("assistant", token[cut:])]
                rendered = render(tokenizer, messages)
                assert [index for index in rendered.ids if index in forbidden] == plain
                for number, message in enumerate(messages):
                    alone = [
                        index
                        for index, owner in zip(rendered.ids, rendered.message_index, strict=True)
                        if owner == number and index not in forbidden
                    ]
                    assert message.content in tokenizer.decode(alone)


def test_unigram_and_word_models_cannot_spell_a_control_token(added: Callable[..., dict[str, Any]]) -> None:
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["[INST]", 0.0], *([letter, -5.0] for letter in "<s>[INT]ab")]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    words = {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "[INST]": 2, "a": 3}}
    for model in (unigram, words):
        entries = [{**added(token), "id": number} for number, token in enumerate(["<unk>", "<s>", "[INST]"])]
        tokenizer = Tokenizer({"version": "1.0", "added_tokens": entries, "model": model, "decoder": {"type": "Fuse"}}, Facts())
        assert tokenizer.control == {"<s>": 1, "[INST]": 2}
        for text in ("<s>", "[INST]", "a<s>b"):
            assert not {1, 2} & set(tokenizer.encode(text))


def test_merges_that_build_a_control_token_are_not_used(description: dict[str, Any], added: Callable[..., dict[str, Any]]) -> None:
    changed = copy.deepcopy(description)
    vocabulary = changed["model"]["vocab"]
    size = max(vocabulary.values()) + 1
    vocabulary.update({"xy": size, "xyz": size + 1, "xyzw": size + 2})
    changed["model"]["merges"] += [["x", "y"], ["xy", "z"], ["xyz", "w"]]
    changed["model"]["ignore_merges"] = True
    changed["added_tokens"].append({**added("xyz", special=False), "id": size + 1})
    tokenizer = Tokenizer(changed, Facts())
    assert [tokenizer.token(index) for index in tokenizer.encode("xyz")] == ["xy", "z"]
    assert size + 1 not in tokenizer.encode("xyzw xyz")


def test_added_white_space_is_text(description: dict[str, Any], added: Callable[..., dict[str, Any]]) -> None:
    changed = copy.deepcopy(description)
    size = max(changed["model"]["vocab"].values()) + 1
    changed["added_tokens"] += [
        {**added("<mark>", special=False), "id": size},
        {**added("    ", special=False), "id": size + 1},
    ]
    tokenizer = Tokenizer(changed, Facts())
    assert size + 1 in tokenizer.encode("a    b")
    assert tokenizer.decode(tokenizer.encode("a    b<mark>")) == "a    b<mark>"


def test_the_last_guard_holds_when_the_construction_fails(own: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Tokenizer(json.loads(own._whole.to_str()), Facts())
    monkeypatch.setattr(broken, "_plain", broken._whole)
    assert broken.encode("harmless")
    with pytest.raises(ModelError, match="control token out of text"):
        broken.encode("<|end|>")
    with pytest.raises(ModelError, match="control token out of text"):
        broken.encode_batch(["fine", "<|end|>"])
    monkeypatch.setattr(broken, "_seen", load.ENOUGH)
    broken._fast = Mock(encode=lambda text: [7])
    with pytest.raises(ModelError, match="control token out of text"):
        broken.encode("harmless")


def test_a_prefix_space_is_put_only_before_the_first_word(added: Callable[..., dict[str, Any]]) -> None:
    vocabulary = {token: number for number, token in enumerate(["<s>", "▁", "a", "b"])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    parsed = {"version": "1.0", "added_tokens": [{**added("<s>"), "id": 0}], "model": model, "pre_tokenizer": metaspace}
    tokenizer = Tokenizer(parsed, Facts())
    assert [run.ids for run in tokenizer.encode_runs(["a", "a"], first=[True, False])] == [[1, 2], [2]]
    assert tokenizer.encode_runs([], first=[]) == []
    assert isinstance(tokenizer.encode_runs(["b"], first=[True])[0], Run)
    assert tokenizer._whole.encode("<s>a", add_special_tokens=False).ids == [0, 2]
    assert "first" in without_control(parsed)


def test_spans_cover_the_space_that_a_token_starts_with(description: dict[str, Any]) -> None:
    changed = copy.deepcopy(description)
    changed["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    run = Tokenizer(changed, Facts()).encode_runs([" file is"], first=[True])[0]
    assert run.spans == [(0, 5), (5, 8)]


def test_forks_after_parallel_encoding_neither_warn_nor_hang(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path)
    program = (
        "import os, sys\n"
        "from luyen.tokenizer.load import Tokenizer\n"
        "tokenizer = Tokenizer.load(sys.argv[1])\n"
        "texts = ['hello world'] * 500\n"
        "expected = tokenizer.encode_batch(texts)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    serial = os.environ.get('TOKENIZERS_PARALLELISM') == 'false'\n"
        "    os._exit(0 if serial and tokenizer.encode_batch(texts) == expected else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert tokenizer.encode_batch(texts) == expected\n"
        "assert 'TOKENIZERS_PARALLELISM' not in os.environ\n"
        "assert 'torch' not in sys.modules\n"
    )
    # Python 3.12 and later warn of any fork while threads run; what tokenizers says of it is what is checked here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
