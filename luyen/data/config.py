"""How data files are read. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Literal

from luyen.core.config import Config


class ReadConfig(Config):
    """What to read of data files, and how."""

    columns: dict[str, str | int] = {}
    """Our column names to the file's, where they differ: {prompt: Question, completion: Answer}; a number is a place, from 1."""
    split: str = ""
    """Only files with this word in their path, such as train; empty: every file of a folder or hub data set."""
    text_unit: Literal["file", "paragraph", "line"] = "file"
    """file, paragraph or line: what a document of a text file is."""
    strict: bool = False
    """Stop at the first bad row, instead of keeping it in rejected.jsonl and going on."""


class HeldOutConfig(ReadConfig):
    """How text is read that a model is measured on and was not trained on."""

    all_documents: bool = False
    """Measure on every document of plain files that nothing was trained on; else on the one in twenty that pretraining leaves out."""
