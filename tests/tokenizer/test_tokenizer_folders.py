"""Hugging Face folders: the same ids in transformers, the same bytes every time, one line for what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from luyen.core.errors import DamagedFile, ModelError
from luyen.core.manifest import seal
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

MakeFolder = Callable[..., Path]
TEXTS = ["", " ", "Xin chào, Việt Nam 2024!", "Привет 😉\n\n  мир", "def f():\n\treturn 'x'  ", "e\u0302\u0323 NFD", "a" * 500]


@pytest.mark.parametrize("kind", ["bpe", "word", "character"])
def test_transformers_gives_the_same_ids_and_text(kind: str, tmp_path: Path) -> None:
    tokenizer = train([text * 2 for text in TEXTS], TokenizerConfig(kind=kind, vocab_size=400))
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [tokenizer.bos_id, *ids]
        assert theirs.decode(ids) == tokenizer.decode(ids)
        ended = [1, *ids, 2]
        assert theirs.decode(ended, skip_special_tokens=True) == tokenizer.decode(ended)
        assert theirs.decode(ended) == tokenizer.decode(ended, skip_control=False)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    assert len(theirs) == tokenizer.vocab_size


def test_a_loaded_tokenizer_is_the_saved_one(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path / "first")
    again = Tokenizer.load(tmp_path / "first")
    again.save(tmp_path / "second")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    assert [again.encode(text) for text in TEXTS] == [own.encode(text) for text in TEXTS]
    assert (again.stop_ids, again.vocab_size, again.names) == (own.stop_ids, own.vocab_size, own.names)
    assert dict(again.control) == dict(own.control)
    assert again.template.name == "luyen"


def test_what_other_files_of_the_folder_say_is_used(make_folder: MakeFolder) -> None:
    folder = make_folder(["<s>", "</s>", "<|eot|>", "<pad>"], eos_token={"content": "</s>", "special": True})
    special = {"bos_token": "<s>", "eos_token": "<|eot|>", "pad_token": {"content": "<pad>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [Tokenizer.load(folder).control["<|eot|>"]]}))
    tokenizer = Tokenizer.load(folder)
    control = tokenizer.control
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (control["<s>"], control["</s>"], control["<pad>"])
    assert tokenizer.stop_ids == (control["</s>"], control["<|eot|>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert Tokenizer.load(folder).stop_ids == (5, control["</s>"])


def test_tokens_that_only_the_config_declares_are_added_as_transformers_does(make_folder: MakeFolder) -> None:
    folder = make_folder(["<s>"])
    size = Tokenizer.load(folder).vocab_size
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    declared = {str(size): {"content": "<late>", "special": True}, str(size + 1): {"content": "[TAG]", "special": False}}
    path.write_text(json.dumps({**settings, "added_tokens_decoder": declared}))
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.control["<late>"], tokenizer.control["[TAG]"]) == (size, size + 1)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.encode("a<late>b[TAG]", add_special_tokens=False) == [
        *tokenizer.encode("a"), size, *tokenizer.encode("b"), size + 1
    ]  # fmt: skip
    path.write_text(json.dumps({**settings, "added_tokens_decoder": {"3": {"content": "<s>", "special": True}}}))
    with pytest.raises(ModelError, match="disagree on '<s>'; found ids 3 and"):
        Tokenizer.load(folder)
    path.write_text(json.dumps({**settings, "added_tokens_decoder": {"9999": {"content": "<far>", "special": True}}}))
    with pytest.raises(ModelError, match="'<far>' an id that does not follow"):
        Tokenizer.load(folder)


def test_templates_are_found_in_all_their_places(make_folder: MakeFolder) -> None:
    one, two, three = ("{% for m in messages %}" + f"{mark}{{{{ m.content }}}}<e>" + "{% endfor %}" for mark in "123")
    folder = make_folder(["<e>"], one)
    assert Tokenizer.load(folder).template.jinja == one
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    several = [{"name": "tool_use", "template": one}, {"name": "default", "template": two}]
    path.write_text(json.dumps({**settings, "chat_template": several}))
    assert Tokenizer.load(folder).template.jinja == two
    (folder / "chat_template.jinja").write_text(three)
    assert Tokenizer.load(folder).template.jinja == three


def test_saving_somebody_elses_tokenizer_keeps_ids_and_drops_code(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(["<s>", "<x>"], bos_token="<s>", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, model_max_length=77)
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    Tokenizer.load(folder).save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "auto_map" not in settings
    assert settings["model_max_length"] == 77
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.encode("hello", add_special_tokens=False) == Tokenizer.load(folder).encode("hello")
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()


def test_padding_and_truncation_in_the_file_do_not_touch_ids(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(["<pad>"])
    path = folder / "tokenizer.json"
    parsed = json.loads(path.read_text())
    parsed["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    parsed["padding"] = {
        "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
    }  # fmt: skip
    plain = Tokenizer.load(folder).encode("functions that read")
    path.write_text(json.dumps(parsed))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("functions that read") == plain
    tokenizer.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is saved["padding"] is None


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, make_folder: MakeFolder) -> None:
    with pytest.raises(ModelError, match="no folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="found nothing; expected tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"spm")
    with pytest.raises(ModelError, match="found tokenizer.model; expected tokenizer.json. Convert it once"):
        Tokenizer.load(tmp_path)
    folder = make_folder(["<s>"])
    good = (folder / "tokenizer.json").read_text()
    bad: dict[str, str] = {
        "{": "is not JSON",
        "[]": "holds no object",
        "{}": "has no model",
        '{"model": {"type": "BPE"}}': "without a vocabulary",
        good.replace('"BPE"', '"ABC"'): "cannot be read by tokenizers",
        json.dumps({**json.loads(good), "added_tokens": [{"id": "x"}]}): "added_tokens",
    }
    for text, message in bad.items():
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match=message) as caught:
            Tokenizer.load(folder)
        assert "\n" not in str(caught.value)


def test_a_config_of_the_wrong_shape_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder(["<s>"])
    cases: list[tuple[str, Any]] = [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<s>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {}}}),
        ("generation_config.json", {"eos_token_id": "two"}),
    ]
    for name, value in cases:
        before = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text(json.dumps(value))
        with pytest.raises(ModelError, match=r"added_tokens_decoder|eos_token_id"):
            Tokenizer.load(folder)
        if before is not None:
            (folder / name).write_text(before)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_every_file_of_a_sealed_tokenizer_is_checked(own: Tokenizer, name: str, tmp_path: Path) -> None:
    own.save(tmp_path)
    seal(tmp_path, "tokenizer")
    assert Tokenizer.load(tmp_path).vocab_size == own.vocab_size
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b" ", b"\t", 1))
    with pytest.raises(DamagedFile, match=name):
        Tokenizer.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DamagedFile, match=f"{name}: is missing"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_whose_replacement_was_cut_is_found_again(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path / ".tmp-old-4194304-0-mine")
    assert Tokenizer.load(tmp_path / "mine").vocab_size == own.vocab_size
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
