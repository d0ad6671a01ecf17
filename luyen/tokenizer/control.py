"""Text can never become a control token: the part of a tokenizer that sees text does not know them.

transformers and tokenizers match every added token in any string, so a user who types `<|end|>` or `[INST]` speaks
with the template's voice (tokenizers' own `encode_special_tokens` switches off the matching of tokens flagged special
only, not of structural strings that are merely "added"). Here a second tokenizer is made from the same
`tokenizer.json` in which no control token can be produced:

- they are added tokens under random names only, so nothing is matched before the model runs;
- no merge builds one, no vocabulary entry spells one (word-level and Unigram models look whole strings up);
- no post-processor adds one.

What counts as control: every added token, flagged special or not, except those of white space only (Gemma and
GPT-NeoX keep runs of spaces that way: they are text), the model's own token for unknown text, which stays where the
model needs it but is no longer matched when somebody types it, and text tokens.

A text token is one that tuning has added to be written in data (`Tokenizer.with_tokens`): like a word it is found in any text, a user's
too, and says nothing of who speaks. The folder names them under TEXT_TOKENS; whatever else a file adds stays control.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Collection, Mapping
from typing import Any

TEXT_TOKENS = "luyen_text_tokens"
"""Key of `tokenizer_config.json`, which other programs pass over: added tokens that are text."""


def control_tokens(description: Mapping[str, Any], text: Collection[str] = ()) -> dict[str, int]:
    """String to id of every control token that a parsed `tokenizer.json` defines, in order of id; `text` are its text tokens."""
    unknown = unknown_token(description.get("model") or {})
    added = sorted(description.get("added_tokens") or (), key=lambda token: int(token["id"]))
    return {token["content"]: int(token["id"]) for token in added if _is_marker(token, text) and token["content"] != unknown}


def _is_marker(token: Mapping[str, Any], text: Collection[str]) -> bool:
    return bool(token["content"].strip()) and token["content"] not in text


def unknown_token(model: Mapping[str, Any]) -> str | None:
    """The string that stands for unknown text in a tokenizer's model, if it has one."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    name = model.get("unk_token")
    return None if name is None else str(name)


def without_control(description: Mapping[str, Any], text: Collection[str] = (), *, continued: bool = False) -> str:
    """The `tokenizer.json` text of a tokenizer that gives the same ids but never a control id.

    continued: the text does not stand at the beginning of the input. Matters only for tokenizers that put a space
    before the first word of the input and nowhere else (Metaspace with `prepend_scheme: first`).
    """
    plain = copy.deepcopy(dict(description))
    unknown = unknown_token(plain["model"])
    # The token for unknown text is an entry of the model itself. As an added one under another name it would take an id of its own, and
    # with it move those of all that stand behind the model's.
    added = [token for token in plain.get("added_tokens") or [] if token["content"] != unknown]
    # Ids count on every other entry being there, so control tokens stay, under names drawn at random that nobody can type.
    renamed = {token["content"]: secrets.token_hex(24) for token in added if _is_marker(token, text)}
    plain["added_tokens"] = [{**token, "content": renamed.get(token["content"], token["content"])} for token in added]
    plain["post_processor"] = plain["truncation"] = plain["padding"] = None
    plain["model"] = _model_without(plain["model"], renamed)
    if continued:
        _never_prepend(plain.get("pre_tokenizer"))
    return json.dumps(plain, ensure_ascii=False)


def _model_without(model: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(token, token): index for token, index in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, renamed)]
    return model


def _touches(merge: str | list[str], names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _never_prepend(node: Any) -> None:
    """Set `prepend_scheme` first to never, at any depth of a pre-tokenizer."""
    if isinstance(node, dict):
        if node.get("prepend_scheme") == "first":
            node["prepend_scheme"] = "never"
        for child in node.values():
            _never_prepend(child)
    elif isinstance(node, list):
        for child in node:
            _never_prepend(child)


def prepends_once(node: Any) -> bool:
    """Whether a pre-tokenizer puts a space before the first word of the input only."""
    if isinstance(node, dict):
        return node.get("prepend_scheme") == "first" or any(prepends_once(child) for child in node.values())
    return isinstance(node, list) and any(prepends_once(child) for child in node)
