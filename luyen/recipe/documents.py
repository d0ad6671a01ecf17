"""Documents from whatever a stage is given: a curated corpus, or plain files that nobody curated."""

from __future__ import annotations

import hashlib
from pathlib import Path

from luyen.core.errors import DamagedFile, DataError
from luyen.core.records import Document, Plain
from luyen.corpus.curate import read_documents
from luyen.data.config import ReadConfig
from luyen.data.formats import Dataset, read

HELD_OUT_ONE_IN = 20


def is_corpus(path: Path) -> bool:
    """Whether `path` is the folder of a curation."""
    return (path / "funnel.json").is_file()


def read_whole(path: Path, config: ReadConfig | None = None, *, rejected: Path | None = None) -> Dataset:
    """Every record of a data file or folder; DamagedFile when a file breaks off, so that no part of it is missed silently."""
    dataset = read(path, config, rejected=rejected)
    if not dataset.account.complete:
        name, reason = next(iter(dataset.account.damaged.items()))
        raise DamagedFile(name, f"{reason}. Mend it or take it out of the folder")
    return dataset


def read_texts(path: Path, split: str) -> list[Document]:
    """Documents of a split, `train` or `heldout`.

    Plain files have no splits: there one document in twenty, by the hash of its text, is held out, as soon as there are twenty.
    """
    if is_corpus(path):
        documents = list(read_documents(path, split))
        if not documents and split == "train":
            raise DataError(f"{path} holds no documents", fix="Look at funnel.json there: it says which rule dropped them.")
        return documents
    dataset = read_whole(path)
    texts = [record.text for record in dataset.records if isinstance(record, Plain)]
    if not texts:
        raise DataError(f"{path} holds no plain text", found=dataset.format, expected="text", fix="Give documents, not conversations.")
    held_out = [len(texts) >= HELD_OUT_ONE_IN and _bucket(text) == 0 for text in texts]
    wanted = split == "heldout"
    return [
        Document(id=f"{path.name}:{number}", text=text)
        for number, (text, out) in enumerate(zip(texts, held_out, strict=True))
        if out == wanted
    ]


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") % HELD_OUT_ONE_IN
