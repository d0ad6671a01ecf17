"""Documents from whatever a stage is given: a curated corpus, or plain files that nobody curated."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luyen.core import progress
from luyen.core.errors import ConfigError, DamagedFile, DataError
from luyen.core.plural import exactly
from luyen.core.records import Document, Plain
from luyen.corpus.curate import read_documents
from luyen.data.config import HeldOutConfig, ReadConfig
from luyen.data.formats import Dataset, read

HELD_OUT_ONE_IN = 20


def is_corpus(path: Path) -> bool:
    """Whether `path` is the folder of a curation."""
    return (path / "funnel.json").is_file()


def read_whole(path: Path, config: ReadConfig, rejected: Path) -> Dataset:
    """Every record of a data file or folder, or of a corpus those for training; bad rows are kept byte for byte in the file `rejected`.

    The file is there only if there are any. Raises what `read` raises, and DamagedFile when a file breaks off, so that no part of it is
    missed silently.
    """
    if is_corpus(path):
        _refuse(path, config, "read")
        config = config.model_copy(update={"split": "train"})
    dataset = read(path, config, rejected=rejected)
    if not dataset.account.complete:
        name, reason = next(iter(dataset.account.damaged.items()))
        raise DamagedFile(name, f"{reason}. Mend it or take it out of the folder")
    return dataset


class Texts:
    """The documents of a corpus or of plain files, in those to train on and those held out.

    Plain files have no splits: there one document in twenty, by the hash of its text, is held out, and at least one as soon as there are
    twenty (unless all are alike). They are read once, bad rows are kept in the file `rejected`; a corpus is read split by split, when it
    is asked for.

    `section` is the name of the config section that `config` comes from. Raises ConfigError when it is set for a corpus, which is read
    as it is; `strict` may be set, since a corpus has no bad rows, only damage.
    """

    def __init__(self, path: Path, config: ReadConfig, rejected: Path, section: str = "read") -> None:
        self.path, self.config, self.rejected, self.section = path, config, rejected, section
        self.account: dict[str, Any] = {}
        """What became of every row of plain files; empty for a corpus."""
        if is_corpus(path):
            _refuse(path, config, section)

    @functools.cached_property
    def train(self) -> list[Document]:
        """Documents to train on. Raises DataError when there are none."""
        if not is_corpus(self.path):
            return self._plain[0]
        documents = list(read_documents(self.path, "train"))
        if not documents:
            raise DataError(f"{self.path} holds no documents", fix="Look at funnel.json there: it says which rule dropped them.")
        return documents

    @functools.cached_property
    def heldout(self) -> list[Document]:
        """Documents that nothing is trained on; may be empty."""
        return list(read_documents(self.path, "heldout")) if is_corpus(self.path) else self._plain[1]

    @property
    def measured(self) -> list[Document]:
        """The held-out documents, for those who cannot go on without: DataError, with what to do, when there are none."""
        if self.heldout:
            return self.heldout
        found, expected = exactly(len(self.train), "document"), f"at least {HELD_OUT_ONE_IN} (one in twenty is held out)"
        fix = (
            f"Give a curated corpus or a larger file; {self.section}.text_unit=paragraph makes more documents of a text file, "
            "but pretraining on the same file must have had read.text_unit=paragraph too."
        )
        if is_corpus(self.path):
            found, expected = f"{found} to train on", "held-out ones"
            fix = "Curate it again with heldout_fraction above 0 and at least 5 documents."
        elif len(self.train) >= HELD_OUT_ONE_IN:
            found += " with the same text"
        raise DataError(f"{self.path} yields no held-out text", found=found, expected=expected, fix=fix)

    @functools.cached_property
    def _plain(self) -> tuple[list[Document], list[Document]]:
        dataset = read_whole(self.path, self.config, self.rejected)
        self.account = dataset.account.as_dict()
        texts = [record.text for record in dataset.records if isinstance(record, Plain)]
        if not texts:
            fix = "Give documents, not conversations; read.columns.text=COLUMN names the column that holds them."
            raise DataError(f"{self.path} holds no plain text", found=dataset.format, expected="text", fix=fix)
        if len(texts) < len(dataset.records):
            progress.say(f"  left out: {exactly(len(dataset.records) - len(texts), 'row')} of {self.path.name} without plain text")
        splits: tuple[list[Document], list[Document]] = ([], [])
        whole = isinstance(self.config, HeldOutConfig) and self.config.all_documents
        chosen = {_hash(text) for text in texts} if whole else _held_out(texts)
        for number, text in enumerate(texts):
            splits[_hash(text) in chosen].append(Document(id=f"{self.path.name}:{number}", text=text))
        if whole:
            progress.say(f"  {exactly(len(texts), 'document')} to measure on")
            return splits
        more = f"{self.section}.text_unit=paragraph makes more"
        few = "" if len(texts) >= HELD_OUT_ONE_IN else f" (there are fewer than {HELD_OUT_ONE_IN}; {more})"
        progress.say(f"  {exactly(len(splits[0]), 'document')} to train on, {len(splits[1]):,} held out{few}")
        return splits


def _refuse(path: Path, config: ReadConfig, section: str) -> None:
    if told := _told(config, section):
        expected = f"nothing: {path} is a curated corpus, which is read as it is"
        raise ConfigError(section, found=" ".join(told), expected=expected, fix="Leave it out.")


def _told(config: ReadConfig, section: str) -> list[str]:
    """What of a section says how to read, as the user would write it."""
    plain = ReadConfig()
    told = [f"{section}.columns.{ours}={theirs}" for ours, theirs in config.columns.items()]
    told += [f"{section}.split={config.split}"] if config.split != plain.split else []
    told += [f"{section}.all_documents=true"] if isinstance(config, HeldOutConfig) and config.all_documents else []
    return told + ([f"{section}.text_unit={config.text_unit}"] if config.text_unit != plain.text_unit else [])


def _held_out(texts: Sequence[str]) -> set[bytes]:
    """Hashes of the texts to hold out: those of one bucket in twenty; where that is none or all of them, the least one."""
    hashes = {_hash(text) for text in texts}
    if len(texts) < HELD_OUT_ONE_IN or len(hashes) < 2:
        return set()
    chosen = {value for value in hashes if int.from_bytes(value[:4], "big") % HELD_OUT_ONE_IN == 0}
    return chosen if 0 < len(chosen) < len(hashes) else {min(hashes)}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
