"""Tokens that are added to a tokenizer: found in text, as transformers finds them, or control tokens of a template."""

import json
from pathlib import Path

import pytest

from luyen.core.errors import ModelError, UserError
from luyen.core.records import Message
from luyen.tokenizer import load
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer

TEXTS = [
    "Read <tool> the file </tool> now",
    "<tool></tool><tool>",
    "no token, < tool>",
    "điểm<tool>",
    "a <tool_x> b",
    "<|user|> <tool>",
    "",
]


@pytest.fixture(scope="module")
def grown(own: Tokenizer) -> Tokenizer:
    return own.with_tokens(["<tool>", "</tool>"])


def test_they_are_found_in_text_and_say_nothing_of_who_speaks(own: Tokenizer, grown: Tokenizer) -> None:
    first = own.vocab_size
    assert grown.vocab_size == first + 2 and grown.control == own.control
    assert grown.encode("<tool>x</tool>") == [first, *own.encode("x"), first + 1]
    assert grown.decode(grown.encode("Read <tool> it </tool>")) == "Read <tool> it </tool>", "they are part of what is read"
    assert grown.encode("no token at all") == own.encode("no token at all")
    assert grown.encode("<|end|><tool>") == [*own.encode("<|end|>"), first], "control tokens stay out of reach"
    rendered = render(grown, [Message("user", "<tool>"), Message("assistant", "</tool>")])
    assert first in rendered.ids and rendered.trained[rendered.ids.index(first + 1)] and not rendered.trained[rendered.ids.index(first)]


def test_the_folder_reads_the_same_here_and_in_transformers(grown: Tokenizer, tmp_path: Path) -> None:
    grown.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == grown.vocab_size
    for text in TEXTS:
        assert again.encode(text) == grown.encode(text)
        if "<|" not in text:
            assert theirs.encode(text, add_special_tokens=False) == grown.encode(text)
    assert again.encode_batch(TEXTS) == [grown.encode(text) for text in TEXTS]


def test_the_faster_encoder_leaves_such_texts_to_the_other(own: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [own.with_tokens(["<tool>", "</tool>"]).encode(text) for text in TEXTS]
    monkeypatch.setattr(load, "ENOUGH", 0)
    quick = own.with_tokens(["<tool>", "</tool>"])
    assert [quick.encode(text) for text in TEXTS] == slow == quick.encode_batch(TEXTS)


def test_what_is_a_token_already_is_refused(own: Tokenizer, grown: Tokenizer) -> None:
    for tokenizer, token in ((own, "<|end|>"), (own, "a"), (own, " the"), (grown, "<tool>")):
        with pytest.raises(UserError, match=r"tokens: .* is a token of this tokenizer already") as told:
            tokenizer.with_tokens([token])
        assert "\n" not in str(told.value)


def test_those_that_a_template_writes_become_control_tokens(own: Tokenizer, tmp_path: Path) -> None:
    tokens = [token for token in ("<|im_start|>", "<|im_end|>", "<tool>") if token not in own.control]
    grown = own.with_tokens(tokens, "chatml").with_template("chatml")
    assert grown.control["<|im_start|>"] >= own.vocab_size and "<tool>" not in grown.control
    assert grown.control["<|im_end|>"] in grown.stop_ids
    assert grown.control["<|im_start|>"] not in grown.encode("<|im_start|>"), "nobody types it"
    grown.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.control == grown.control
    assert again.encode("<tool><|im_start|>") == grown.encode("<tool><|im_start|>")
    (tmp_path / "own.jinja").write_text((tmp_path / "chat_template.jinja").read_text())
    assert own.with_tokens(tokens, str(tmp_path / "own.jinja")).control == grown.control


def test_a_folder_cannot_make_a_control_token_text(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "luyen_text_tokens": ["<|end|>"]}))
    with pytest.raises(ModelError, match="luyen_text_tokens"):
        Tokenizer.load(tmp_path)


def test_a_token_for_unknown_text_moves_none_of_them(tmp_path: Path) -> None:
    """As in Llama 2's file, where it is an entry of the model and an added token at once."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    theirs.add_special_tokens(["<unk>", "<s>", "</s>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    grown = Tokenizer.load(tmp_path).with_tokens(["<tool>", "</tool>"])
    assert theirs.add_tokens(["<tool>", "</tool>"]) == 2
    assert grown.encode("a<tool>b</tool>?") == theirs.encode("a<tool>b</tool>?").ids == [3, 5, 4, 6, 0]
    assert not {1, 2} & set(grown.encode("<s></s><unk>"))
