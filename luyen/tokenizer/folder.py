"""Reading a Hugging Face tokenizer folder: JSON and a template's text, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luyen.core.errors import ModelError
from luyen.core.hub import download, has_hub_form
from luyen.core.manifest import existing, recover, verify_listed
from luyen.tokenizer.control import TEXT_TOKENS, control_tokens
from luyen.tokenizer.foreign import recognise
from luyen.tokenizer.templates import ChatTemplate, Names

AGAIN = "Fetch or save the tokenizer again."
FROM_HUB = ("*.json", "*.jinja")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Facts:
    """What a tokenizer folder says beside `tokenizer.json`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """`tokenizer_config.json` as it will be written back."""
    names: Names = field(default_factory=Names)
    stop_ids: tuple[int, ...] = ()
    """Ids that `generation_config.json` says end an answer."""
    template: ChatTemplate | None = None
    text_tokens: tuple[str, ...] = ()
    """Added tokens that are found in text, as words are."""


def locate(name: str | Path) -> Path:
    """The folder that holds `tokenizer.json`: the folder itself, its `model` subfolder, or the hub's copy on this machine, without weights.

    Raises ModelError when there is none.
    """
    folder = existing(name)
    if folder is not None:
        inner = existing(folder / "model")
        return inner if inner is not None and (inner / "tokenizer.json").is_file() else folder
    if not has_hub_form(str(name)):
        raise ModelError(
            f"no model or tokenizer {str(name)!r}", expected="a folder, or a hub name such as owner/model", fix="Check the path."
        )
    return download(str(name), "model", FROM_HUB)


def read_folder(folder: Path) -> tuple[dict[str, Any], Facts]:
    """The parsed `tokenizer.json`, completed as transformers does, and the facts beside it.

    Raises ModelError when there is no `tokenizer.json`, or when a file is malformed or contradicts another; DamagedFile when one
    differs from the manifest that lists it, or is gone.
    """
    recover(folder)
    for name in FILES:
        verify_listed(folder / name)
    if not (folder / "tokenizer.json").is_file():
        raise _no_tokenizer(folder)
    settings = _optional(folder / "tokenizer_config.json")
    description = _with_declared(_description(folder / "tokenizer.json"), settings, folder)
    special = {**_optional(folder / "special_tokens_map.json"), **settings}
    names = Names(bos=_name(special.get("bos_token")), eos=_name(special.get("eos_token")), pad=_name(special.get("pad_token")))
    stop_ids = _stop_ids(folder / "generation_config.json")
    text = _text_tokens(settings, description, (names.bos, names.eos, names.pad), folder)
    jinja = _template_text(folder, settings)
    template = None if jinja is None else recognise(jinja, names, control_tokens(description, text))
    if "auto_map" in settings:  # names Python files of the folder; the saved copy must not ask for them
        settings = {key: value for key, value in settings.items() if key != "auto_map"} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return description, Facts(settings, names, stop_ids, template, text)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON", found=error, fix=AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no object", found=type(value).__name__, fix=AGAIN)
    return value


def _optional(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}


def _description(path: Path) -> dict[str, Any]:
    parsed = _read(path)
    if not isinstance(parsed.get("model"), dict):
        raise ModelError(f"{path} has no model", found=", ".join(parsed) or "nothing", fix=AGAIN)
    if not isinstance(parsed["model"].get("vocab"), dict | list):
        raise ModelError(f"{path} holds a model without a vocabulary", found=parsed["model"].get("type"), fix=AGAIN)
    added = parsed.get("added_tokens")
    if added is not None and not isinstance(added, list):
        raise ModelError(f"{path}: added_tokens", found=added, expected="a list", fix=AGAIN)
    for token in added or ():
        if not (isinstance(token, dict) and isinstance(token.get("id"), int) and isinstance(token.get("content"), str)):
            raise ModelError(f"{path}: added_tokens", found=token, expected="objects with id and content", fix=AGAIN)
    unknown, vocabulary = parsed["model"].get("unk_id"), parsed["model"]["vocab"]
    usual = isinstance(unknown, int) and not isinstance(unknown, bool) and isinstance(vocabulary, list)
    if unknown is not None and not (usual and 0 <= unknown < len(vocabulary)):
        raise ModelError(f"{path}: unk_id", found=unknown, expected=f"an id below {len(vocabulary)}", fix=AGAIN)
    return parsed


def _no_tokenizer(folder: Path) -> ModelError:
    if not folder.is_dir():
        return ModelError(f"no folder {folder}", fix="Give a folder that holds tokenizer.json.")
    old = [name for name in ("tokenizer.model", "vocab.json", "spiece.model", "vocab.txt") if (folder / name).is_file()]
    if old:
        return ModelError(
            f"{folder} has no tokenizer.json",
            found=", ".join(old),
            expected="tokenizer.json",
            fix="Convert it once with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        )
    names = sorted(path.name for path in folder.iterdir())[:8]
    return ModelError(f"{folder} is no tokenizer folder", found=", ".join(names) or "nothing", expected="tokenizer.json")


def _with_declared(description: dict[str, Any], settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The description with tokens that only `tokenizer_config.json` declares, as transformers adds them."""
    known = {token["content"]: token["id"] for token in description.get("added_tokens") or ()}
    extra = []
    for number, token in _declared(settings, folder):
        if token["content"] not in known:
            flags = {key: bool(token.get(key)) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            extra.append({"id": number, "content": token["content"], **flags})
        elif known[token["content"]] != number:
            raise ModelError(
                f"{folder}: tokenizer_config.json and tokenizer.json disagree on {token['content']!r}",
                found=f"ids {number} and {known[token['content']]}",
                fix="Save the tokenizer again with the program that made it.",
            )
    return {**description, "added_tokens": [*(description.get("added_tokens") or ()), *extra]}


def _declared(settings: Mapping[str, Any], folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """`added_tokens_decoder` in order of id."""
    declared = settings.get("added_tokens_decoder") or {}
    try:
        entries = [(int(number), dict(token)) for number, token in declared.items()]
        if not all(isinstance(token["content"], str) for _, token in entries):
            raise TypeError("content is no text")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = folder / "tokenizer_config.json"
        raise ModelError(f"{path}: added_tokens_decoder", found=error, expected="id: token", fix=AGAIN) from error
    return sorted(entries, key=lambda entry: entry[0])


def _text_tokens(
    settings: Mapping[str, Any], description: Mapping[str, Any], offices: tuple[str | None, ...], folder: Path
) -> tuple[str, ...]:
    """The added tokens that are text. ModelError for one that is special or has an office: it would be found in what users type."""
    named = settings.get(TEXT_TOKENS) or []
    plain = {token["content"] for token in description.get("added_tokens") or () if not token.get("special")} - set(offices)
    if not isinstance(named, list) or not all(isinstance(token, str) and token in plain for token in named):
        expected = "a list of added tokens that are neither special nor the beginning, end or padding"
        raise ModelError(f"{folder / 'tokenizer_config.json'}: {TEXT_TOKENS}", found=named, expected=expected, fix=AGAIN)
    return tuple(named)


def _name(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _stop_ids(path: Path) -> tuple[int, ...]:
    value = _optional(path).get("eos_token_id")
    ends = value if isinstance(value, list) else ([] if value is None else [value])
    if not all(isinstance(end, int) and end >= 0 for end in ends):
        raise ModelError(f"{path}: eos_token_id", found=value, expected="an id or a list of ids", fix="Correct it there.")
    return tuple(ends)


def _template_text(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: its own file, or the string (or the one called default) in `tokenizer_config.json`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8", found=error, fix=AGAIN) from error
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
