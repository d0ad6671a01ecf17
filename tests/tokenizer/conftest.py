"""Toy tokenizers: a small byte-level vocabulary with the control tokens of other models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from luyen.core.records import Message
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

TEXTS = [
    "The module offers functions that read a file and give its lines. It raises an error when the file is missing.",
    "Hà Nội là thủ đô của Việt Nam. Mô hình ngôn ngữ học từ dữ liệu tiếng Việt.",
    "Модель учится на русском тексте и отвечает на вопросы. Привет, мир!",
    "def read(path): return open(path).read()\n\nfor line in lines:\n    print(line, 12345)\n",
]

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def own() -> Tokenizer:
    """Our own kind: byte-level BPE with the control tokens of a new vocabulary."""
    return train(TEXTS * 4, TokenizerConfig(vocab_size=600))


def _added(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **usual, **flags}


@pytest.fixture(scope="session")
def added() -> Callable[..., dict[str, Any]]:
    """Makes an entry of `added_tokens` without its id."""
    return _added


@pytest.fixture(scope="session")
def description(own: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The parsed `tokenizer.json` of `own`."""
    folder = tmp_path_factory.mktemp("own")
    own.save(folder)
    return dict(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))


@pytest.fixture
def make_folder(description: dict[str, Any], tmp_path: Path) -> MakeFolder:
    """Writes a Hugging Face folder as another project would: same merges, other control tokens."""

    def make(tokens: Sequence[str | dict[str, Any]], jinja: str | None = None, **config: Any) -> Path:
        parsed = copy.deepcopy(description)
        kept = sorted(parsed["model"]["vocab"].items(), key=lambda item: item[1])[8:]
        parsed["model"]["vocab"] = {token: place for place, (token, _) in enumerate(kept)}
        entries = [token if isinstance(token, dict) else _added(token) for token in tokens]
        parsed["added_tokens"] = [{**entry, "id": len(kept) + place} for place, entry in enumerate(entries)]
        parsed["post_processor"] = None
        folder = tmp_path / "foreign"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(parsed), encoding="utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
        if jinja is not None:
            settings["chat_template"] = jinja
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def dialog() -> list[Message]:
    """System, question, answer, question, answer."""
    return [
        Message("system", "S"),
        Message("user", "U1"),
        Message("assistant", "A1"),
        Message("user", "U2"),
        Message("assistant", "A2"),
    ]
