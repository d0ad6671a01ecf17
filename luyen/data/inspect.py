"""Rows as the model will see them: which tokens are trained on, which are context, which are cut, and where every token went.

Of a preference both answers are rows, and of a judged answer the answer alone is trained: what a loss on them would look at.
Without colour the same is told by marks as wdiff writes them: {+trained+}, [-cut-], context bare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from rich.text import Text

from luyen.core.errors import ConfigError
from luyen.core.plural import exactly
from luyen.core.records import Conversation, Feedback, Labelled, Message, Plain, Preference, Record, Tagged
from luyen.data.formats import Dataset
from luyen.data.packing import best_fit, efficiency
from luyen.data.samples import (
    ANSWER_CUT_AWAY,
    BATCH_ROWS,
    NOTHING_TRAINED,
    Account,
    Sample,
    Truncation,
    cut_sample,
    render_records,
    text_samples,
)
from luyen.tokenizer.chat import Rendered
from luyen.tokenizer.load import Tokenizer

NO_ANSWER = (Labelled, Tagged)
"""Records that hold no answer to write: there is nothing in them to show as trained."""
State = Literal["trained", "context", "cut"]
# Neighbouring tokens alternate between two shades, so that their borders can be seen.
STYLES: dict[State, tuple[str, str]] = {
    "trained": ("black on green", "black on bright_green"), "context": ("", "dim"), "cut": ("strike red", "strike bright_red"),
}  # fmt: skip
MARKS: dict[State, tuple[str, str]] = {"trained": ("{+", "+}"), "context": ("", ""), "cut": ("[-", "-]")}
SHOWN_CHARACTERS = 4000
"""Most characters that are shown of a row: a row can be a whole file."""
SHOWN_TOKENS = 4000
"""Tokens at the start of a row that are decoded to be shown; all of them are counted."""


@dataclass(frozen=True)
class Token:
    """One token as shown (a character split over several tokens stands with the last of them)."""

    text: str
    state: State


@dataclass(frozen=True)
class ShownRow:
    """One row, token by token."""

    origin: str
    tokens: tuple[Token, ...]
    """Its first tokens, at most `SHOWN_TOKENS`."""
    counts: Mapping[State, int]
    """Tokens of the whole row in each state."""
    fate: str
    """"" when it is used whole, else what happened to it."""

    def text(self, limit: int = 400) -> Text:
        """The row for a terminal, at most `limit` tokens and `SHOWN_CHARACTERS` characters of it, and how many more tokens it has."""
        whole = sum(self.counts.values())
        head = f"{self.origin}: {exactly(whole, 'token')}, {self.counts.get('trained', 0):,} trained, {self.counts.get('cut', 0):,} cut"
        result = Text(head + (f" ({self.fate})" if self.fate else "") + "\n", style="bold")
        body = Text(style="not bold")
        before: State = "context"
        shown = 0
        for index, token in enumerate(self.tokens[:limit]):
            if len(body) >= SHOWN_CHARACTERS:
                break
            shown += 1
            if token.state != before:
                body.append(MARKS[before][1] + MARKS[token.state][0])
                before = token.state
            body.append(visible(token.text), style=STYLES[token.state][index % 2])
        body.append(MARKS[before][1])
        if whole > shown:
            body.append(f" ... and {exactly(whole - shown, 'more token')}", style="italic")
        return result.append_text(body)


@dataclass(frozen=True)
class Inspection:
    """What a dataset would teach: some rows shown, all rows counted, and what is wrong with any of them."""

    rows: tuple[ShownRow, ...]
    account: Account
    lengths: tuple[int, ...]
    """Positions of every row before any cut."""
    problems: tuple[str, ...]
    """Rows that train on nothing or never train the end of a turn: there should be none."""
    packing: float
    """Share of packed rows that tokens fill; 1.0 when there are no samples."""
    limit: int

    @property
    def ok(self) -> bool:
        """Whether every row teaches something and how to stop."""
        return not self.problems

    def summary(self) -> list[str]:
        """The account, one line each."""
        account = self.account
        middle, high = (int(value) for value in np.percentile(self.lengths or (0,), [50, 95]))
        share = account.trained / account.tokens if account.tokens else 0.0
        used = account.rows - account.num_dropped
        lines = [
            f"rows {account.rows:,}: {used:,} used, {account.num_dropped:,} dropped, {account.truncated:,} cut",
            *(f"dropped {count:,}: {reason}" for reason, count in account.dropped.items()),
            f"length in tokens: median {middle:,}, 95 % below {high:,}, longest {account.longest:,}, limit {self.limit:,}",
            f"tokens {account.rendered:,}: {account.tokens:,} used, {account.cut:,} cut or dropped",
            f"answer tokens {account.answer:,}: {account.trained:,} trained ({share:.0%} of those used), {account.lost:,} lost",
            f"packed rows of {self.limit:,} are {self.packing:.1%} full",
        ]
        lines += [f"problem: {problem}" for problem in self.problems[:5]]
        return [*lines, f"... and {exactly(len(self.problems) - 5, 'more problem')}"] if len(self.problems) > 5 else lines


def inspect(dataset: Dataset, tokenizer: Tokenizer, length: int, truncation: Truncation = "drop", *, show: int = 3) -> Inspection:
    """Render a dataset as training would, `show` rows of it to look at.

    Plain text is split at the limit as in pretraining; anything else is cut or dropped as in fine-tuning. Raises DataError for records that
    have no answer at all (`NO_ANSWER`; see `record_text` for those), and as `truncation: raise` says; ConfigError for a length that holds
    no target.
    """
    if length < 2:
        raise ConfigError("length of a row in tokens", found=length, expected="at least 2: a token and the one after it")
    if all(isinstance(record, Plain) for record in dataset.records):
        return _inspect_text(dataset, tokenizer, length, show)
    account = Account()
    rows: list[ShownRow] = []
    lengths: list[int] = []
    samples: list[Sample] = []
    problems: list[str] = []
    expanded = _sides(dataset)
    while batch := list(islice(expanded, BATCH_ROWS)):
        for side, found in zip(batch, render_records([side.record for side in batch], tokenizer), strict=True):
            rendered = _answer_only(found, side.context)
            sample, entry = cut_sample(rendered, length, truncation, key=side.origin)
            account += entry
            lengths.append(entry.rendered)
            problem = problem_of(rendered, sample, entry, tokenizer.stop_ids)
            problems += [f"{side.origin}: {problem}"] if problem else []
            samples += [sample] if sample else []
            if len(rows) < show:
                rows.append(_shown(side.origin, rendered, len(sample.tokens) if sample else -1, entry, tokenizer))
    filled = _packing(samples, length)
    return Inspection(tuple(rows), account, tuple(lengths), tuple(problems), filled, length)


@dataclass(frozen=True)
class _Side:
    """A row to render: a record as it is, or one of the answers that a record compares or judges."""

    origin: str
    record: Record
    context: int = 0
    """So many messages at the start are context, whoever wrote them."""


def _sides(dataset: Dataset) -> Iterator[_Side]:
    for record, origin in zip(dataset.records, dataset.origins, strict=True):
        match record:
            case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
                yield _Side(f"{origin} chosen", Conversation((*prompt, *chosen)), len(prompt))
                yield _Side(f"{origin} rejected", Conversation((*prompt, *rejected)), len(prompt))
            case Feedback(prompt=prompt, completion=completion, label=label):
                yield _Side(f"{origin} {'good' if label else 'bad'}", Conversation((*prompt, *completion)), len(prompt))
            case _:
                yield _Side(origin, record)


def _answer_only(rendered: Rendered, context: int) -> Rendered:
    """The same row with nothing trained in its first `context` messages."""
    if not context:
        return rendered
    trained = [is_trained and turn >= context for is_trained, turn in zip(rendered.trained, rendered.message_index, strict=True)]
    return Rendered(rendered.ids, trained, rendered.message_index)


def _inspect_text(dataset: Dataset, tokenizer: Tokenizer, length: int, show: int) -> Inspection:
    samples, account = text_samples((record for record in dataset.records if isinstance(record, Plain)), tokenizer, length)
    rendered = render_records(dataset.records[:show], tokenizer)
    whole = Account(rows=1)
    rows = tuple(_shown(origin, row, len(row.ids), whole, tokenizer) for origin, row in zip(dataset.origins, rendered, strict=False))
    by_document: dict[str, int] = {}
    for sample in samples:
        key = sample.id.rpartition("#")[0]
        by_document[key] = by_document.get(key, 0) + len(sample.tokens)
    return Inspection(rows, account, tuple(by_document.values()), (), _packing(samples, length), length)


def _packing(samples: Sequence[Sample], length: int) -> float:
    lengths = [len(sample.tokens) for sample in samples]
    return efficiency(lengths, best_fit(lengths, length), length)


def problem_of(rendered: Rendered, sample: Sample | None, entry: Account, stop_ids: Sequence[int]) -> str:
    """Why a row teaches nothing or not how to stop; "" when it is fine, or dropped because it is too long."""
    if NOTHING_TRAINED in entry.dropped:
        return "trains on nothing: it has no answer"
    if ANSWER_CUT_AWAY in entry.dropped:
        return f"trains on nothing: its answer lies behind the limit ({entry.rendered:,} tokens)"
    if sample is None:
        return ""
    ends = {turn for place, turn in enumerate(rendered.message_index) if rendered.trained[place] and rendered.ids[place] in stop_ids}
    kept = range(1, len(sample.tokens) + 1)  # ids that are a target
    taught = {rendered.message_index[place] for place in kept if rendered.trained[place]}
    last = max(taught)
    if entry.truncated and not any(rendered.trained[place] and rendered.ids[place] in stop_ids for place in kept):
        return "never trains the end of turn: the row is cut before it"
    missing = taught - ends - ({last} if entry.truncated else set())
    return f"never trains the end of turn of message {min(missing) + 1}" if missing else ""


def _shown(origin: str, rendered: Rendered, kept: int, entry: Account, tokenizer: Tokenizer) -> ShownRow:
    """A row with the state of its ids: `kept` positions are used, -1 for none."""
    states: list[State] = [
        "cut" if place > kept else "trained" if trained and place else "context" for place, trained in enumerate(rendered.trained)
    ]
    fate = next((f"dropped: {reason}" for reason in entry.dropped), "cut" if entry.truncated else "")
    texts = token_texts(rendered.ids[:SHOWN_TOKENS], tokenizer)
    return ShownRow(origin, tuple(Token(text, state) for text, state in zip(texts, states, strict=False)), Counter(states), fate)


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What each id adds to the text. The bytes of a character that is split over ids are shown at its last one."""
    texts: list[str] = []
    start = 0  # first id that is not shown yet
    for place in range(len(ids)):
        # Decoded together with the id before, since some tokenizers drop a space at the very start.
        before = tokenizer.decode(ids[max(start - 1, 0) : start], skip_control=False)
        text = tokenizer.decode(ids[max(start - 1, 0) : place + 1], skip_control=False)
        own = text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[start : place + 1], skip_control=False)
        if own.endswith("\ufffd") and place + 1 < len(ids) and place - start < 8:
            texts.append("")
        else:
            texts.append(own)
            start = place + 1
    return texts


def visible(text: str) -> str:
    """Text with control characters, which a terminal would obey, written as escapes; line breaks stay."""
    return "".join(char if char >= " " and not "\x7f" <= char <= "\x9f" or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def record_text(record: Record, origin: str = "") -> Text:
    """A record of any kind in words, for looking at data without a tokenizer; at most `SHOWN_CHARACTERS` of them and what was left out."""
    match record:
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            parts = [*_turns(prompt), "chosen:", *_turns(chosen), "rejected:", *_turns(rejected)]
        case Labelled(text=text, label=label, text_pair=pair):
            parts = [f"[{label}] {text}", *([pair] if pair else [])]
        case Tagged(tokens=tokens, tags=tags):
            parts = [" ".join(f"{token}/{tag}" for token, tag in zip(tokens, tags, strict=True))]
        case _:
            parts = []
            for name, value in vars(record).items():
                messages = isinstance(value, tuple) and value and isinstance(value[0], Message)
                parts += _turns(value) if messages else [f"{name}: {value}"]
    result = Text(f"{origin}\n" if origin else "", style="bold")
    return result.append(visible("\n".join(_cut(parts))), style="not bold")


def _cut(parts: Sequence[str]) -> list[str]:
    """The parts of a row, the longest cut until together they have at most `SHOWN_CHARACTERS` characters; beyond 100 parts only a count."""
    shown = parts[:100]
    room = longest = SHOWN_CHARACTERS
    for place, length in enumerate(sorted(map(len, shown))):
        share = room // (len(shown) - place)
        if length > share:
            longest = share
            break
        room -= length
    cut = [part if len(part) <= longest else f"{part[:longest]} ... and {len(part) - longest:,} more characters" for part in shown]
    return cut if len(parts) <= 100 else [*cut, f"... and {len(parts) - 100:,} more parts"]


def _turns(turns: Sequence[Message]) -> list[str]:
    return [f"{turn.role}: {turn.content}" for turn in turns]
