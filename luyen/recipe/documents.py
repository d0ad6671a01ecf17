"""Documents from whatever a stage is given: a curated corpus, or plain files that nobody curated."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from luyen.core import progress
from luyen.core.errors import DamagedFile, DataError
from luyen.core.records import Document, Plain
from luyen.corpus.curate import read_documents
from luyen.data.config import ReadConfig
from luyen.data.formats import Dataset, read

HELD_OUT_ONE_IN = 20


def is_corpus(path: Path) -> bool:
    """Whether `path` is the folder of a curation."""
    return (path / "funnel.json").is_file()


def read_whole(path: Path, config: ReadConfig, rejected: Path) -> Dataset:
    """Every record of a data file or folder; bad rows are kept byte for byte in the file `rejected`, which is there only if there are any.

    Raises what `read` raises, and DamagedFile when a file breaks off, so that no part of it is missed silently.
    """
    dataset = read(path, config, rejected=rejected)
    if not dataset.account.complete:
        name, reason = next(iter(dataset.account.damaged.items()))
        raise DamagedFile(name, f"{reason}. Mend it or take it out of the folder")
    return dataset


class Texts:
    """The documents of a corpus or of plain files, in those to train on and those held out.

    Plain files have no splits: there one document in twenty, by the hash of its text, is held out, as soon as there are twenty.
    They are read once, bad rows are kept in the file `rejected`; a corpus is read split by split, when it is asked for.
    """

    def __init__(self, path: Path, config: ReadConfig, rejected: Path) -> None:
        self.path, self.config, self.rejected = path, config, rejected
        self.account: dict[str, Any] = {}
        """What became of every row of plain files; empty for a corpus."""

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

    @functools.cached_property
    def _plain(self) -> tuple[list[Document], list[Document]]:
        dataset = read_whole(self.path, self.config, self.rejected)
        self.account = dataset.account.as_dict()
        texts = [record.text for record in dataset.records if isinstance(record, Plain)]
        if not texts:
            fix = "Give documents, not conversations; read.columns.text=COLUMN names the column that holds them."
            raise DataError(f"{self.path} holds no plain text", found=dataset.format, expected="text", fix=fix)
        if len(texts) < len(dataset.records):
            progress.say(f"  {len(dataset.records) - len(texts):,} rows of {self.path.name} are no plain text and are left out")
        splits: tuple[list[Document], list[Document]] = ([], [])
        for number, text in enumerate(texts):
            held_out = len(texts) >= HELD_OUT_ONE_IN and _bucket(text) == 0
            splits[held_out].append(Document(id=f"{self.path.name}:{number}", text=text))
        few = "" if len(texts) >= HELD_OUT_ONE_IN else f" (there are fewer than {HELD_OUT_ONE_IN}; read.text_unit=paragraph makes more)"
        progress.say(f"  {len(splits[0]):,} documents to train on, {len(splits[1]):,} held out{few}")
        return splits


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") % HELD_OUT_ONE_IN
