"""`luyen inspect DATA [model=DIR]`: what a data set would teach, before it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from pydantic import model_validator

from luyen.adapters.config import AdapterConfig, Quantization, check_bits
from luyen.cli.arguments import field_help, one_word, plain_command, program, split_words, working
from luyen.cli.chat import find
from luyen.cli.export import suggestion
from luyen.cli.inspect_adapter import show_adapter
from luyen.cli.unfinished import RECIPE
from luyen.core import manifest, progress, storage
from luyen.core.config import Config, Input, load
from luyen.core.errors import ConfigError, DamagedFile, DataError
from luyen.data.config import ReadConfig
from luyen.report.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from luyen.data.formats import Dataset
    from luyen.data.loader import Batch
    from luyen.tokenizer.load import Tokenizer

HELP = """Show rows of a data set as the model will see them ({+trained+}, context, [-cut-]), the detected format and an account
of every token. Fails (exit code 2) when a row trains on nothing or never trains the end of a turn. Without DATA, as in
`inspect model=DIR adapter.method=lora`, show what of the model would be trained and what that costs; with DATA and adapter.method=esft,
which experts of a mixture the data chooses.

DATA is a file, a folder, a data set of the hub, a questions stage, or a run that has one. Of preference pairs both answers are shown;
labels and token tags hold no answer, so they are shown as they are. Without a model only the format and the rows are shown. Settings:"""
LONGEST = 512
"""Limit in tokens when none is given and the model's context is longer or not known."""


class InspectReadConfig(ReadConfig):
    """What to read of data files, and how."""

    strict: bool = False
    """Stop at the first bad row, instead of naming it and going on."""


class InspectConfig(Config):
    """What to look at."""

    data: Input | None = None
    """DATA, as in the settings of a stage."""
    model: Input | None = None
    """Whose tokenizer and chat template are used: a model, a tokenizer, a run or a stage of one, or a hub name."""
    template: str = ""
    """Chat template: a built-in one by name, or the path of a .jinja file; empty: the model's own."""
    rows: int = 3
    """Rows to show."""
    length: int | None = None
    """Longest row in tokens; empty: the model's context, at most 512."""
    truncation: Literal["drop", "truncate", "raise"] = "drop"
    """drop, truncate or raise: what happens to longer rows."""
    read: InspectReadConfig = InspectReadConfig()
    """How the files are read."""
    rejected: str | None = None
    """File that keeps malformed rows byte for byte; empty: they are counted, the first are named, and none is kept."""
    adapter: AdapterConfig = AdapterConfig()
    """The modules of `model` that training with this adapter would train, and their memory; DATA beside it chooses experts for esft."""
    quantize: Quantization = "none"
    """Bits of the frozen weights, as in training."""
    tokens: list[str] = []
    """New tokens, as in training: rows are shown with them, and their rows of embedding and head are counted."""

    @model_validator(mode="after")
    def _check(self) -> InspectConfig:
        check_bits(self.adapter.method, self.quantize)
        return self


def command(name: str) -> click.Command:
    """The command `inspect`."""
    params: list[click.Parameter] = [click.Argument(["words"], nargs=-1, required=True, metavar="[DATA] [KEY=VALUE]...")]
    return plain_command(name, _inspect, f"{HELP}\n\n{field_help(InspectConfig)}", params)


def _inspect(words: tuple[str, ...]) -> None:
    plain, settings = split_words(words)
    config = load(InspectConfig, settings, "luyen inspect")
    plain += [config.data] if config.data is not None else []
    if not plain and config.model is not None:
        with working():
            show_adapter(find(config.model)[1], config.adapter, config.quantize, config.tokens)
        return
    data = one_word(plain, "data file or folder")
    if config.model is not None and config.adapter.method == "esft":
        with working():
            rows = _packed_rows(*_data(data, config.read), config)
            show_adapter(find(config.model)[1], config.adapter, config.quantize, config.tokens, rows)
        return
    if "adapter" in settings or "quantize" in settings:
        raise ConfigError("adapter", found=f"beside the data {data}", expected="DATA or an adapter", fix="Leave one of them out.")
    with working():
        _show(*_data(data, config.read), config)


def _data(value: str, read: ReadConfig) -> tuple[str, ReadConfig]:
    """The data that a name means, and how to read it. Raises DataError for a folder that holds something else than data."""
    path = manifest.existing(value)
    if path is None or not path.is_dir():
        return value, read
    if _has_questions(path):
        return str(path / "train.jsonl"), read
    if (path / RECIPE).is_file():
        found = [file.parent for file in sorted(path.glob("*/train.jsonl")) if _has_questions(file.parent)]
        if len(found) != 1:
            named = ", ".join(map(str, found)) or "none"
            raise DataError(
                f"{path} is a run, not data",
                found=f"stages with training rows: {named}",
                expected="exactly one",
                fix="Name a file or a stage.",
            )
        progress.say(f"the rows of {found[0]}")
        return str(found[0] / "train.jsonl"), read
    kind = _kind(path)
    if kind in ("model", "tokenizer"):
        raise DataError(f"{path} is a {kind}, not data", fix=f"Look at data with it: {program()} inspect DATA model={path}" +
                        (f"; talk to it: {program()} chat {path}" if kind == "model" else ""))  # fmt: skip
    if kind == "checkpoint":
        raise DataError(f"{path} is a training checkpoint, not data", fix=f"To talk to it, make a model of it: {suggestion(path)}")
    if kind in ("pages", "evaluation"):
        raise DataError(f"{path} holds the {kind} of a stage, not rows to train on", fix="Name a data file, a corpus or a questions stage.")
    if kind == "corpus" and not read.split:
        progress.say("the corpus' documents for training (read.split=heldout shows the others)")
        return value, read.model_copy(update={"split": "train"})
    return value, read


def _has_questions(folder: Path) -> bool:
    return (folder / "train.jsonl").is_file() and (folder / "evaluation.jsonl").is_file()


def _kind(folder: Path) -> str:
    """What a folder was made to hold, by its manifest or by its files; "" for any other folder."""
    if (folder / manifest.MANIFEST).is_file():
        try:
            return str(storage.read_json(folder / manifest.MANIFEST)["kind"])
        except (DamagedFile, KeyError, TypeError):
            return ""
    if (folder / "checkpoints").is_dir() or (folder / "config.json").is_file():
        return "model"
    return "tokenizer" if (folder / "tokenizer.json").is_file() else ""


def _show(data: str, read: ReadConfig, config: InspectConfig) -> None:
    from rich.console import Console

    from luyen.data import formats
    from luyen.data.inspect import NO_ANSWER

    console = Console(highlight=False)
    folder = _tokenizer_folder(config.model) if config.model is not None else None
    dataset = formats.read(data, read, rejected=Path(config.rejected) if config.rejected else None)
    kinds = sorted({type(record).__name__.lower() for record in dataset.records if isinstance(record, NO_ANSWER)})
    if folder is None or kinds:
        _show_records(dataset, config.rows, console)
    if folder is None:
        print("Name a model=FOLDER to see tokens and what is trained on.")
    elif kinds:
        count = sum(isinstance(record, NO_ANSWER) for record in dataset.records)
        print(f"{' and '.join(kinds)} texts, for classifiers: {count:,} of {counted(len(dataset.records), 'row')}")
        print("they hold no answer to write, so no token of them is trained on, and `luyen sft` does not take them")
    else:
        _show_tokens(dataset, folder, config, console)


def _show_records(dataset: Dataset, rows: int, console: Console) -> None:
    from luyen.data.inspect import record_text

    for record, origin in list(zip(dataset.records, dataset.origins, strict=True))[:rows]:
        console.print(record_text(record, origin))


def _show_tokens(dataset: Dataset, folder: Path, config: InspectConfig, console: Console) -> None:
    from luyen.core.records import Feedback, Preference
    from luyen.data.inspect import inspect

    tokenizer = _tokenizer(dataset, folder, config)
    length, reason = (config.length, "") if config.length is not None else _default_length(folder)
    inspection = inspect(dataset, tokenizer, length, config.truncation, show=config.rows)
    for row in inspection.rows:
        console.print(row.text())
    for line in inspection.summary():
        print(line)
    if reason:
        print(f"limit {length:,}: {reason}")
    if any(isinstance(record, Preference | Feedback) for record in dataset.records):
        print("each answer is a row here, masked as a loss that compares or judges answers sees it; `luyen sft` does not take such rows")
    if not inspection.ok:
        raise DataError(
            f"{counted(len(inspection.problems), 'row')} would teach nothing or not how to stop", found=inspection.problems[0],
            fix="Mend or remove them, or raise length.",
        )  # fmt: skip


def _tokenizer(dataset: Dataset, folder: Path, config: InspectConfig) -> Tokenizer:
    """A folder's tokenizer, with a chat template where one is named or rows are turns."""
    from luyen.core.records import Completion, Plain
    from luyen.tokenizer.load import Tokenizer

    tokenizer = Tokenizer.load(folder).with_tokens(config.tokens, config.template)
    if config.template or not all(isinstance(record, Plain | Completion) for record in dataset.records):
        tokenizer = tokenizer.with_template(config.template)
    return tokenizer


def _packed_rows(data: str, read: ReadConfig, config: InspectConfig) -> list[Batch]:
    """The first rows of the data as training packs them, as many as `adapter.experts.samples`."""
    from luyen.core.records import Plain
    from luyen.data import formats
    from luyen.data.loader import PackedStream, collate
    from luyen.data.samples import chat_samples, text_samples

    assert config.model is not None
    folder = _tokenizer_folder(config.model)
    dataset = formats.read(data, read, rejected=Path(config.rejected) if config.rejected else None)
    tokenizer = _tokenizer(dataset, folder, config)
    length = config.length if config.length is not None else _default_length(folder)[0]
    texts = [record for record in dataset.records if isinstance(record, Plain)]
    if len(texts) == len(dataset.records):
        samples, _ = text_samples(texts, tokenizer, length)
    else:
        samples, _ = chat_samples(dataset.records, tokenizer, length, config.truncation)
    stream = PackedStream(samples, capacity=length, rows=1, seed=0)
    return [collate([stream.samples[index] for index in row]) for row in stream.plan(0)[: config.adapter.experts.samples]]


def _tokenizer_folder(name: str) -> Path:
    """The folder with `tokenizer.json` of a path, of a run's model, or of the hub's copy on this machine."""
    from luyen.tokenizer.folder import locate

    path = manifest.existing(name)
    known = path is not None and any((path / file).is_file() for file in (RECIPE, "state.json"))
    return locate(find(name)[1] if known else name)


def _default_length(folder: Path) -> tuple[int, str]:
    """The limit when none is given, and where it comes from."""
    context: object = None
    if (folder / "config.json").is_file():
        values = storage.read_json(folder / "config.json")
        context = values.get("max_position_embeddings") if isinstance(values, dict) else None
    if isinstance(context, int) and 2 <= context <= LONGEST:
        return context, f"the context of {folder} (length=... sets another)"
    why = f"the context of {folder} is {context:,}" if isinstance(context, int) else f"{folder} names no context"
    return LONGEST, f"{why}, so luyen inspect's own limit (length=... sets another)"
