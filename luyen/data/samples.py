"""Documents and conversations as token samples, with an account of every token.

A rendered row of N ids gives N - 1 positions: at position i the model sees ids[0..i] and is asked for ids[i + 1]. So `targets` is
already shifted, and -100 marks a position whose next token is not trained on (the prompt, the template). The limit `length`
counts positions, that is what the model's context holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luyen.core.errors import DataError
from luyen.core.records import Completion, Conversation, Document, Extractive, Message, Plain, Record
from luyen.tokenizer.chat import Rendered, render_batch
from luyen.tokenizer.load import Tokenizer

NOT_TRAINED = -100
BATCH_ROWS = 256  # rows encoded together
Truncation = Literal["drop", "truncate", "raise"]

TOO_LONG = "longer than the limit"
NOTHING_TRAINED = "nothing to train on"
ANSWER_CUT_AWAY = "no answer left after the cut"
EMPTY = "empty"


@dataclass(frozen=True)
class Sample:
    """One independent sequence: position i holds tokens[i] and is asked for targets[i] (-100: not trained)."""

    id: str
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]

    @property
    def num_targets(self) -> int:
        """How many positions are trained on."""
        return int((self.targets != NOT_TRAINED).sum())


@dataclass(frozen=True)
class Account:
    """Where every row and token went: rows = used + dropped, rendered = tokens + cut, answer = trained + lost."""

    rows: int = 0
    """Rows or documents given."""
    samples: int = 0
    """Samples made of them."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that gave no sample, by reason."""
    truncated: int = 0
    """Rows used but cut at the limit."""
    rendered: int = 0
    """Positions of all rows before any cut."""
    tokens: int = 0
    """Positions in the samples."""
    cut: int = 0
    """Positions cut off or dropped with their row."""
    answer: int = 0
    """Positions with a trained target before any cut."""
    trained: int = 0
    """Positions with a trained target in the samples."""
    lost: int = 0
    """Answer tokens lost to cuts and dropped rows."""
    longest: int = 0
    """Positions of the longest row before any cut."""

    @property
    def num_dropped(self) -> int:
        """Rows that gave no sample."""
        return sum(self.dropped.values())

    def __add__(self, other: Account) -> Account:
        """The account of both sources together."""
        total = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        dropped = dict(sorted((Counter(self.dropped) + Counter(other.dropped)).items()))
        return Account(dropped=dropped, longest=max(self.longest, other.longest), **total)

    def as_dict(self) -> dict[str, object]:
        """Plain values for a manifest or a metrics file."""
        return {name: getattr(self, name) for name in ("rows", *_SUMMED[1:], "longest")} | {"dropped": dict(self.dropped)}


_SUMMED = ("rows", "samples", "truncated", "rendered", "tokens", "cut", "answer", "trained", "lost")


def text_samples(
    documents: Iterable[Document | Plain], tokenizer: Tokenizer, length: int, *, name: str = "text"
) -> tuple[list[Sample], Account]:
    """Documents as `bos + text + eos`, split into pieces of at most `length` positions.

    Every token after the first is the target of exactly one position. Pieces are independent samples: the second piece of a
    document starts with its own tokens (no bos) and sees nothing of the first; the only id in two pieces is the one at the seam, a target
    in the first and an input in the second. A sample's id is the document's id (or `name` and a number), `#` and the piece.
    """
    samples: list[Sample] = []
    account = Account()
    for key, ids in _encode_documents(documents, tokenizer, name):
        positions = max(len(ids) - 1, 0)
        text_tokens = len(ids) - (tokenizer.bos_id is not None) - (tokenizer.eos_id is not None)
        if not positions or not text_tokens:
            account += Account(rows=1, dropped={EMPTY: 1}, rendered=positions, cut=positions, answer=positions, lost=positions)
            continue
        array = np.array(ids, dtype=np.int32)
        starts = range(0, positions, length)
        for piece, start in enumerate(starts):
            stop = min(start + length, positions)
            samples.append(Sample(f"{key}#{piece}", array[start:stop], array[start + 1 : stop + 1]))
        account += Account(rows=1, samples=len(starts), rendered=positions, tokens=positions, answer=positions, trained=positions,
                           longest=positions)  # fmt: skip
    return samples, account


def _encode_documents(documents: Iterable[Document | Plain], tokenizer: Tokenizer, name: str) -> Iterator[tuple[str, list[int]]]:
    """Key and ids of each document, encoded some hundred at a time."""
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    iterator = iter(documents)
    index = 0
    while batch := list(islice(iterator, BATCH_ROWS)):
        for document, ids in zip(batch, tokenizer.encode_batch([document.text for document in batch]), strict=True):
            key = document.id if isinstance(document, Document) else f"{name}:{index}"
            yield key, before + ids + after
            index += 1


def chat_samples(
    records: Iterable[Record], tokenizer: Tokenizer, length: int, truncation: Truncation = "drop", *, name: str = "row"
) -> tuple[list[Sample], Account]:
    """Conversations and completions as samples that train on the answers and the turn's end only.

    Also takes SQuAD rows (context and question as the user's turn, the first answer as the assistant's) and plain text (all of it trained).
    A row longer than `length` positions is dropped, cut at the end, or raises DataError, as `truncation` says; a row that trains on
    nothing is dropped. The account counts both. A sample's id is `name` and the row's number from 0.
    """
    samples: list[Sample] = []
    account = Account()
    iterator = iter(records)
    while batch := list(islice(iterator, BATCH_ROWS)):
        for rendered in render_records(batch, tokenizer):
            sample, entry = cut_sample(rendered, length, truncation, key=f"{name}:{account.rows}")
            account += entry
            if sample is not None:
                samples.append(sample)
    return samples, account


def cut_sample(rendered: Rendered, length: int, truncation: Truncation, *, key: str) -> tuple[Sample | None, Account]:
    """One row of `chat_samples`: the sample, or None when it is dropped, and the row's account."""
    ids, trained = rendered.ids, rendered.trained
    tokens = np.array(ids[:-1], dtype=np.int32)
    targets = np.where(np.array(trained[1:], dtype=bool), np.array(ids[1:], dtype=np.int32), np.int32(NOT_TRAINED)).astype(np.int32)
    positions, answer = len(tokens), int((targets != NOT_TRAINED).sum())
    if positions > length and truncation == "raise":
        raise DataError(f"row {key} is too long", found=f"{positions} tokens", expected=f"at most {length}",
                        fix="Raise the length, or set truncation to drop or truncate.")  # fmt: skip
    whole = Account(rows=1, rendered=positions, answer=answer, longest=positions)
    if not answer:
        return None, whole + Account(dropped={NOTHING_TRAINED: 1}, cut=positions)
    kept = min(positions, length)
    remaining = int((targets[:kept] != NOT_TRAINED).sum())
    reason = ""
    if kept < positions and truncation == "drop":
        reason = TOO_LONG
    elif not remaining:
        reason = ANSWER_CUT_AWAY
    if reason:
        return None, whole + Account(dropped={reason: 1}, cut=positions, lost=answer)
    cut, lost = positions - kept, answer - remaining
    entry = Account(samples=1, truncated=int(cut > 0), tokens=kept, cut=cut, trained=remaining, lost=lost)
    return Sample(key, tokens[:kept], targets[:kept]), whole + entry


def render_records(records: Sequence[Record], tokenizer: Tokenizer) -> list[Rendered]:
    """Ids of each row and which of them are trained on. Raises DataError for a kind of record that has no answer to imitate.

    For raw text the message index is 0 for the prompt, 1 for the completion, and -1 for the beginning token.
    """
    result: dict[int, Rendered] = {}
    conversations: dict[int, Sequence[Message]] = {}
    for index, record in enumerate(records):
        match record:
            case Conversation(messages=messages):
                conversations[index] = messages
            case Extractive():
                conversations[index] = extractive_messages(record)
            case Completion(prompt=prompt, completion=completion):
                result[index] = _raw(tokenizer, prompt, completion)
            case Plain(text=text):
                result[index] = _raw(tokenizer, "", text)
            case _:
                raise DataError("cannot fine-tune on these rows", found=type(record).__name__.lower(),
                                expected="conversations, prompt and completion, question and context, or text")  # fmt: skip
    result |= zip(conversations, render_batch(tokenizer, list(conversations.values())), strict=True) if conversations else ()
    return [result[index] for index in range(len(records))]


def _raw(tokenizer: Tokenizer, prompt: str, answer: str) -> Rendered:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    start, end = tokenizer.encode_runs([prompt, answer], first=[True, not prompt])
    context, answer_ids = list(start.ids), list(end.ids) + eos
    trained = [False] * (len(bos) + len(context)) + [True] * len(answer_ids)
    return Rendered(bos + context + answer_ids, trained, [-1] * len(bos) + [0] * len(context) + [1] * len(answer_ids))


def extractive_messages(record: Extractive) -> Sequence[Message]:
    """A SQuAD row as two turns: the context, an empty line and the question; then the first answer."""
    question = f"{record.context}\n\n{record.question}" if record.context else record.question
    answer = (Message("assistant", record.answers[0]),) if record.answers else ()
    return (Message("user", question), *answer)
