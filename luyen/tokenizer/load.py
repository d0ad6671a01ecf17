"""The tokenizer as the rest of the program sees it."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from luyen.core.errors import DataError, ModelError, UserError
from luyen.core.storage import write_atomic, write_json
from luyen.tokenizer import fast
from luyen.tokenizer.control import TEXT_TOKENS, control_tokens, prepends_once, unknown_token, without_control
from luyen.tokenizer.folder import Facts, read_folder
from luyen.tokenizer.foreign import recognise
from luyen.tokenizer.templates import JINJA_FILE, TEMPLATES, ChatTemplate, Names, template_named

PARALLELISM = "TOKENIZERS_PARALLELISM"
"""Switches the threads of tokenizers off, and ours with them."""
SERIAL = ("off", "false", "f", "no", "n", "0")
ENOUGH = 1 << 20
"""Characters encoded until the faster encoder is made ready, which costs as much time as they do."""
_CONTROL_LIKE = re.compile(r"<\|[^|<>{}\s]+\|>|</?[a-z_]+>")


@dataclass(frozen=True)
class Run:
    """Text between two control tokens with the span of every token in it: ids and (start, end) in characters."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Tokenizer:
    """Text to ids and back. `encode` never gives a control id, whatever the text; templates add those by number.

    description: a parsed `tokenizer.json`. Raises ModelError when tokenizers cannot build it.
    """

    def __init__(self, description: Mapping[str, Any], facts: Facts) -> None:
        self._facts = facts
        self._whole = _build(json.dumps(description, ensure_ascii=False))
        self._whole.no_padding()
        self._whole.no_truncation()
        _check_ids(description, self._whole)
        self.control: Mapping[str, int] = MappingProxyType(control_tokens(description, facts.text_tokens))
        """String to id of every control token."""
        self._control_ids = frozenset(self.control.values())
        self.unknown_id = self._id(unknown_token(description["model"]))
        """Id that stands for text outside the vocabulary, if there is one."""
        self._plain = _build(without_control(description, facts.text_tokens))
        self._text_token = re.compile("|".join(map(re.escape, facts.text_tokens))) if facts.text_tokens else None
        once = prepends_once(description.get("pre_tokenizer"))
        self._seen = 0
        self._continued = _build(without_control(description, facts.text_tokens, continued=True)) if once else self._plain
        self.stripping = {
            token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip"))) for token in description.get("added_tokens") or ()
        }
        """Whether a control token swallows the white space before and after it in template text."""
        vocabulary = self._whole.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        """One more than the largest id, control tokens included."""
        names = facts.names
        self.pad_id, self.bos_id, self.eos_id = (self._id(name) for name in (names.pad, names.bos, names.eos))
        ends = {self.control[name] for name in (facts.template.end(names) if facts.template else ()) if name in self.control}
        eos = set() if self.eos_id is None else {self.eos_id}
        self.stop_ids: tuple[int, ...] = tuple(sorted({*facts.stop_ids, *ends, *eos}))
        """Ids that end an answer."""

    @property
    def names(self) -> Names:
        """The strings of the beginning, end and padding tokens."""
        return self._facts.names

    @property
    def template(self) -> ChatTemplate:
        """The chat template. Raises ModelError when the folder has none, as base models do."""
        if self._facts.template is None:
            fits = "".join(f"template={name} or " for name in self.fitting_templates())
            what = "this model's tokenizer has no chat template, which says how a conversation becomes tokens"
            raise ModelError(what, fix=f"Set {fits}template=FILE{JINJA_FILE}.")
        return self._facts.template

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._facts.template is not None

    def fitting_templates(self) -> tuple[str, ...]:
        """Names of the templates of the table whose control tokens this tokenizer has."""
        return tuple(name for name, template in TEMPLATES.items() if not self._missing(template))

    def with_template(self, name: str) -> Tokenizer:
        """The same tokenizer with a chat template of the table, or of a file that ends in .jinja; its own for "".

        Raises UserError for a file that cannot be read, ModelError when it is no Jinja, when an answer would not end in a control token
        that this tokenizer has, when control tokens of the template are missing, or for "" when it has no template.
        """
        if name.endswith(JINJA_FILE):
            return self._with_jinja(name)
        if name:
            template = template_named(name)
            if missing := self._missing(template):
                raise self._unfit(f"the template {name!r}", missing)
            return self._with(template)
        return self._with(self.template)

    def _with_jinja(self, file: str) -> Tokenizer:
        jinja = _template_file(file)
        template = recognise(jinja, self.names, self.control)
        if template.end(self.names):
            return self._with(template)
        every = {token: number for known in TEMPLATES.values() for number, token in enumerate(known.needs(self.names), self.vocab_size)}
        known = recognise(jinja, self.names, {**every, **self.control})  # as if the tokenizer had all tokens of the table
        missing = self._missing(known) or [token for token in dict.fromkeys(_CONTROL_LIKE.findall(jinja)) if token not in self.control]
        raise self._unfit(f"the chat template {file}", missing or ["one after every answer"])

    def _missing(self, template: ChatTemplate) -> list[str]:
        return [token for token in template.needs(self.names) if token not in self.control]

    def _unfit(self, what: str, missing: Sequence[str]) -> ModelError:
        """A new control token needs a new row of the embedding, which no training has seen; so none is added unless it is asked for."""
        fits = ", ".join(self.fitting_templates())
        none = "No built-in template fits it; name the tokens under `tokens` when you tune, or give a model that has them."
        return ModelError(
            f"{what} needs control tokens that this tokenizer lacks",
            found=", ".join(list(self.control)[:12]) or "none",
            expected=", ".join(missing),
            fix=f"Templates whose tokens it has: {fits}." if fits else none,
        )

    def _with(self, template: ChatTemplate) -> Tokenizer:
        return Tokenizer(json.loads(self._whole.to_str()), replace(self._facts, template=template))

    def with_tokens(self, tokens: Sequence[str], template: str = "") -> Tokenizer:
        """The same tokenizer with new tokens behind its own, in their order, as `tokenizer.json` has added tokens.

        They are text tokens: the encoder finds them in data, and so in what a user types. Alone those that the `template` writes, given
        as to `with_template`, become control tokens, special in the file, which only the template can write. UserError for a token that
        is there already.
        """
        for token in tokens:
            if self._whole.token_to_id(token) is not None or len(self.encode(token)) == 1 and self.encode(token)[0] != self.unknown_id:
                raise UserError(f"tokens: {token!r} is a token of this tokenizer already", fix="Leave it out.")
        control = [token for token in tokens if token in self._written_by(template)]
        description = json.loads(self._whole.to_str())
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = [
            {"id": number, "content": token, **plain, "special": token in control} for number, token in enumerate(tokens, self.vocab_size)
        ]
        description["added_tokens"] = [*(description.get("added_tokens") or ()), *added]
        text = (*self._facts.text_tokens, *(token for token in tokens if token not in control))
        settings = {**self._facts.settings, TEXT_TOKENS: list(text)} if text else self._facts.settings
        return Tokenizer(description, replace(self._facts, settings=settings, text_tokens=text))

    def _written_by(self, template: str) -> Container[str]:
        """What a template writes, so far as it is known before the tokenizer has its tokens: a file's whole text."""
        if template.endswith(JINJA_FILE):
            return _template_file(template)
        return template_named(template).needs(self.names) if template else ()

    def _id(self, name: str | None) -> int | None:
        if name is None:
            return None
        number = self._whole.token_to_id(name)
        return None if number is None else int(number)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of them a control id, no beginning or end token added. Raises DataError for a lone surrogate."""
        encoder = self._encoder(len(checked_text(text)))
        if encoder is not None and self._for_fast(encoder, text):
            return self._checked(encoder.encode(text))
        return self._checked(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts on all cores; same ids, same order."""
        _guard_forks()
        encoder = self._encoder(sum(len(checked_text(text)) for text in texts))
        if encoder is not None and all(self._for_fast(encoder, text) for text in texts):
            parallel = os.environ.get(PARALLELISM, "").lower() not in SERIAL
            return [self._checked(ids) for ids in encoder.encode_batch(texts, parallel)]
        return [self._checked(encoding.ids) for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def _encoder(self, size: int) -> fast.Encoder | None:
        """tiktoken, for vocabularies of which it is known to give the same ids, once there is enough to encode."""
        self._seen += size
        return self._fast if self._seen >= ENOUGH else None

    def _for_fast(self, encoder: fast.Encoder, text: str) -> bool:
        """Whether the faster encoder gives the same ids of a text; it knows no text tokens."""
        return encoder.takes(text) and not (self._text_token and self._text_token.search(text))

    @functools.cached_property
    def _fast(self) -> fast.Encoder | None:
        return fast.encoder(self._plain)

    def encode_runs(self, texts: Sequence[str], *, first: Sequence[bool]) -> list[Run]:
        """`encode` with the span of each token, for texts of which `first` says whether they begin the input."""
        _guard_forks()
        runs: list[Run | None] = [None] * len(texts)
        for model, wanted in ((self._plain, True), (self._continued, False)):
            chosen = [index for index, begins in enumerate(first) if begins is wanted]
            batch = model.encode_batch([checked_text(texts[index]) for index in chosen], add_special_tokens=False)
            for index, encoding in zip(chosen, batch, strict=True):
                runs[index] = Run(self._checked(encoding.ids), encoding.offsets)
        return [run for run in runs if run is not None]

    def _checked(self, ids: list[int]) -> list[int]:
        if not self._control_ids.isdisjoint(ids):
            raise ModelError("this tokenizer builds a control token out of text", fix="Report its tokenizer.json; it is not safe to use.")
        return ids

    def decode(self, ids: Sequence[int], skip_control: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD. Raises DataError for an id outside the vocabulary."""
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError("an id is outside the vocabulary", found=f"{min(ids)} to {max(ids)}", expected=f"0 to {self.vocab_size - 1}")
        kept = [index for index in ids if index not in self._control_ids] if skip_control else list(ids)
        return str(self._whole.decode(kept, skip_special_tokens=False))

    def token(self, index: int) -> str | None:
        """The vocabulary entry of an id as the file spells it (bytes mapped to letters), None for a gap."""
        name = self._whole.id_to_token(index)
        return None if name is None else str(name)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`; the same tokenizer gives the same bytes."""
        folder = Path(folder)
        write_atomic(folder / "tokenizer.json", self._whole.to_str(pretty=True) + "\n")
        write_json(folder / "tokenizer_config.json", {key: value for key, value in self._facts.settings.items() if key != "chat_template"})
        if self._facts.template is not None:
            write_atomic(folder / "chat_template.jinja", self._facts.template.jinja)

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read a Hugging Face tokenizer folder. Nothing in it is executed but its chat template, in a sandbox.

        Raises ModelError when there is no `tokenizer.json`, or when it does not parse or contradicts its config.
        """
        description, facts = read_folder(Path(folder))
        return cls(description, facts)


def _template_file(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the chat template {file}", found=str(error), fix="Check the path.") from error


def checked_text(text: str) -> str:
    """The text itself. Raises DataError when it holds half a surrogate pair, which no UTF-8 can express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "text holds a lone surrogate, which is no character",
            found=f"U+{ord(text[error.start]):04X} at position {error.start}",
            fix="Decode its source with errors='replace'.",
        ) from error
    return text


def _check_ids(description: Mapping[str, Any], built: tokenizers.Tokenizer) -> None:
    """tokenizers numbers added tokens itself; a file that says otherwise would silently change what they mean."""
    for token in description.get("added_tokens") or ():
        if built.token_to_id(token["content"]) != token["id"]:
            raise ModelError(
                f"tokenizer.json gives the added token {token['content']!r} an id that does not follow from its vocabulary",
                found=f"id {token['id']}",
                expected=built.token_to_id(token["content"]),
                fix="Save the tokenizer again with the program that made it.",
            )


@functools.cache
def _guard_forks() -> None:
    """Switch tokenizers' threads off in forked children, which inherit a thread pool without threads and would hang.

    tokenizers before 0.23 warns on stderr when a process forks after threads were used, unless the variable is set then.
    """
    if PARALLELISM in os.environ:
        return
    os.register_at_fork(
        before=lambda: os.environ.__setitem__(PARALLELISM, "false"),
        after_in_parent=lambda: os.environ.__delitem__(PARALLELISM),
    )


def _build(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        fix = "Save the tokenizer again, or update tokenizers."
        raise ModelError("tokenizer.json cannot be read by tokenizers", found=error, fix=fix) from error
