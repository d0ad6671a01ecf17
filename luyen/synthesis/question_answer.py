"""Documents to questions and answers, without a model: what the pages say, asked in the words of a template file.

Every entry that the template finds is either *taught* or held out altogether. Taught entries give training rows in the
phrasings under `ask`; the phrasings under `held_out` are seen by the evaluation only. Four evaluation sets come out:

- `taught`: taught entries in held-out phrasings;
- `untaught`: entries held out altogether, in the same held-out phrasings, with their true answers;
- `invented`: names that do not exist, asked like the main group; there is no right answer but to say so;
- `training`: a sample of the training questions themselves, so that memory can be told from understanding.

The same documents, config and template give the same bytes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from luyen.core.config import Config, dump
from luyen.core.errors import ConfigError, DataError, nearest
from luyen.core.files import write_jsonl
from luyen.core.plural import exactly
from luyen.core.records import Document
from luyen.core.seed import derive
from luyen.core.storage import write_json
from luyen.synthesis.asking import Asker, Turn
from luyen.synthesis.invent import invented_names
from luyen.tasks.entries import Entry, read_entries
from luyen.tasks.template import Template, load_template

TEMPLATES = Path(__file__).parent / "templates"
TRAINING_SAMPLE = 100
PASSAGE_CHARACTERS = 400
"""Longest passage: about 130 tokens, so that it fits before a question into 256 positions."""


class SynthConfig(Config):
    """How documents become questions and answers."""

    template: str = "python_reference"
    """Template file: the path of a YAML file, or the name of a built-in one."""
    groups: list[str] | None = None
    """Groups of the template's questions to use; none means all of them."""
    heldout_entries: float = 0.1
    """Share of entries that are never taught, from 0 to 0.9."""
    max_entries: int | None = Field(None, ge=1)
    """Most entries to use, taken evenly from the documents; none means all."""
    phrasings_per_entry: int | None = Field(None, ge=1)
    """Training phrasings for one entry and group, chosen at random; none means all of them."""
    evaluation_phrasings: int = Field(1, ge=1)
    """Held-out phrasings for one entry and group in the evaluation."""
    grounded: float = 0.1
    """Share of training rows whose entry's passage stands before the question, as retrieval gives it in a chat, from 0 to 1."""
    multi_turn: float = 0.1
    """Share of training rows that are joined to conversations of two or three turns, from 0 to 1."""
    invented: int = Field(60, ge=0)
    """Names that do not exist for the evaluation."""
    conversation_copies: int = Field(4, ge=0)
    """How often each phrasing that needs no entry (a greeting) stands in the training data."""
    seed: int = 0
    """Decides which entries are held out and every other choice."""


@dataclass(frozen=True)
class Questions:
    """What `generate` makes."""

    train: list[dict[str, Any]]
    """Rows {"messages", "source": group, "entry": name}."""
    evaluation: list[dict[str, Any]]
    """Rows {"id", "set", "source", "entry", "messages", "answer"}; `messages` end with the question."""
    passages: list[dict[str, str]]
    """Rows {"id", "title", "text", "answer", "url"}: every entry as the page has it, for retrieval."""
    account: dict[str, Any]
    """What was found, kept, held out and left out, and why."""
    template: Template


def generate(documents: Iterable[Document], config: SynthConfig) -> Questions:
    """Make training rows and evaluation sets. DataError when the template finds nothing to ask about."""
    documents = list(documents)
    template = load_template(config.template, TEMPLATES)
    names = _group_names(config, template)
    reading = read_entries(documents, template)
    usable = [entry for entry in reading.entries if any(entry.kind in template.questions[name].of for name in names)]
    if not usable:
        matches = exactly(reading.account.get("matches", 0), "match", "matches")
        raise DataError(
            "the template finds no entries",
            found=f"{exactly(len(documents), 'document')} and {matches}: {reading.account}",
            fix="Compare the patterns under entries with the documents' text.",
        )
    chosen = _choose(usable, config)
    untaught = _held_out(chosen, config)
    every = [*reading.entries, *reading.others]
    asker = Asker(template, names, every, config.seed)
    taught = [entry for entry in chosen if entry.name not in untaught]
    asked = asker.without_conflicts([turn for entry in taught for turn in asker.training_turns(entry, config.phrasings_per_entry)])
    passages = [
        {"id": f"{e.document}#{e.name}", "title": e.name, "text": _passage(e), "answer": e.description, "url": e.url} for e in every
    ]
    train = asker.rows(asked, config.multi_turn, config.grounded, {entry.name: _passage(entry) for entry in taught})
    evaluation = asker.evaluation_rows("taught", taught, config.evaluation_phrasings)
    evaluation += asker.evaluation_rows("untaught", [e for e in chosen if e.name in untaught], config.evaluation_phrasings)
    evaluation += _training_sample(asked, config)
    made_up = _made_up(documents, usable, config, template)
    evaluation += asker.invented_rows(made_up[: config.invented])
    train += asker.unknown_rows(made_up[config.invented :]) + asker.conversation_rows(config.conversation_copies)
    random.Random(derive(config.seed, "order")).shuffle(train)
    account = {
        "entries": reading.account,
        "kinds": dict(sorted(Counter(entry.kind for entry in chosen).items())),
        "chosen": len(chosen),
        "taught": len(taught),
        "untaught": sorted(untaught),
        "train": {"rows": len(train), **dict(sorted(Counter(row["source"] for row in train).items()))},
        "evaluation": dict(sorted(Counter(f"{row['set']}/{row['source']}" for row in evaluation).items())),
        "left_out": dict(sorted(asker.left_out.items())),
    }
    return Questions(train, evaluation, passages, account, template)


def write(questions: Questions, folder: Path) -> dict[str, Any]:
    """Write train.jsonl, evaluation.jsonl, passages.jsonl, template.json and account.json; returns the account."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", questions.train)
    write_jsonl(folder / "evaluation.jsonl", questions.evaluation)
    write_jsonl(folder / "passages.jsonl", questions.passages)
    for name, value in (("template.json", dump(questions.template)), ("account.json", questions.account)):
        write_json(folder / name, value)
    return questions.account


def _group_names(config: SynthConfig, template: Template) -> list[str]:
    for name, share, most in _shares(config):
        if not 0 <= share <= most:
            raise ConfigError(f"{name} is a share", found=share, expected=f"a number from 0 to {most}")
    for name in config.groups or []:
        if name not in template.questions:
            raise ConfigError(f"the template has no group {name!r}", fix=nearest(name, template.questions))
    return [name for name in template.questions if config.groups is None or name in config.groups]


def _shares(config: SynthConfig) -> list[tuple[str, float, float]]:
    return [
        ("heldout_entries", config.heldout_entries, 0.9),
        ("multi_turn", config.multi_turn, 1.0),
        ("grounded", config.grounded, 1.0 - config.multi_turn),
    ]


def _passage(entry: Entry) -> str:
    """The entry's name and text, cut at a line's end."""
    text = f"{entry.name}\n{entry.text}"
    return text if len(text) <= PASSAGE_CHARACTERS else text[:PASSAGE_CHARACTERS].rpartition("\n")[0]


def _choose(entries: Sequence[Entry], config: SynthConfig) -> list[Entry]:
    """At most `max_entries`, one from each document in turn, each document's in a seeded order; the result keeps the old order."""
    if config.max_entries is None or len(entries) <= config.max_entries:
        return list(entries)
    queues: dict[str, list[Entry]] = {}
    for entry in entries:
        queues.setdefault(entry.document, []).append(entry)
    for queue in queues.values():
        queue.sort(key=lambda entry: derive(config.seed, "choose", entry.name))
    taken: set[str] = set()
    while len(taken) < config.max_entries:
        for document in sorted(queues):
            if queues[document] and len(taken) < config.max_entries:
                taken.add(queues[document].pop(0).name)
    return [entry for entry in entries if entry.name in taken]


def _held_out(entries: Sequence[Entry], config: SynthConfig) -> set[str]:
    order = sorted((entry.name for entry in entries), key=lambda name: derive(config.seed, "held out", name))
    return set(order[: round(len(order) * config.heldout_entries)])


def _made_up(documents: Sequence[Document], usable: Sequence[Entry], config: SynthConfig, template: Template) -> list[str]:
    kinds = template.questions[template.main_group].of
    alike = [entry for entry in usable if entry.kind in kinds] or usable
    count = config.invented + (template.unknown.count if template.unknown.enabled else 0)
    return invented_names(documents, alike, count, derive(config.seed, "invented"))


def _training_sample(asked: Sequence[Turn], config: SynthConfig) -> list[dict[str, Any]]:
    order = sorted(asked, key=lambda turn: derive(config.seed, "sample", turn.group, turn.question))
    return [turn.evaluation_row("training", number) for number, turn in enumerate(order[:TRAINING_SAMPLE])]
