"""Judgements as other programs have them, and back: prompt/chosen/rejected, Anthropic HH transcripts, Label Studio's JSON.

Label Studio (https://labelstud.io/guide/task_format, https://labelstud.io/tags/pairwise.html): a list of tasks with `data` and
`annotations`; a comparison is a result of the type pairwise whose value is {"selected": "left"} or "right", the left being the first of
`to_name`. Grade, domain, safety and categories are results of the type choices beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from luyen.core.errors import DamagedFile, DataError
from luyen.core.files import open_bytes, read_jsonl
from luyen.core.records import Message, Preference
from luyen.data.convert import GRADES, SAFETY
from luyen.data.formats import read
from luyen.data.turns import BadRow, messages, transcript
from luyen.serving.label_records import DOMAINS, Answer, Judgement, Pair, checked, name_of, told

ANSWERS = ("answer1", "answer2")
_NAMES = {"user": "Human", "assistant": "Assistant"}
Row = Mapping[str, Any]


@dataclass
class Imported:
    """What a file held: judgements, and pairs that nobody has judged."""

    judgements: list[Judgement] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why each row that is neither was left out."""


def preference_rows(judgements: Iterable[Judgement]) -> Iterator[dict[str, Any]]:
    """Rows of prompt/chosen/rejected with all that is known of the click; skipped pairs have none."""
    for judgement in judgements:
        if judgement.preferred is None:
            continue
        good, bad = judgement.preferred, 1 - judgement.preferred
        edited = [word for word, number in (("chosen", good), ("rejected", bad)) if judgement.edits[number] is not None]
        row = {
            "prompt": told(judgement.pair.prompt), "chosen": told(judgement.turns(good)), "rejected": told(judgement.turns(bad)),
            **_about(judgement), "seconds": judgement.seconds, "edited": edited,
            "writers": {"chosen": dict(judgement.pair.answers[good].writer), "rejected": dict(judgement.pair.answers[bad].writer)},
        }  # fmt: skip
        yield {key: value for key, value in row.items() if value is not None}


def _about(judgement: Judgement) -> dict[str, Any]:
    """What stands beside the texts in any form."""
    left = {None: None, judgement.preferred: "chosen"}.get(judgement.left, "rejected")
    return {
        "grade": judgement.grade, "safety": judgement.safety, "domain": judgement.domain, "categories": list(judgement.categories),
        "annotator": judgement.annotator, "time": judgement.time, "left": left,
    }  # fmt: skip


def hh_rows(judgements: Iterable[Judgement]) -> Iterator[dict[str, Any] | str]:
    """Anthropic HH transcripts; in place of a row the reason why a judgement cannot be one (a system turn, a name inside a text)."""
    for judgement in judgements:
        if judgement.preferred is None:
            continue
        talks = [(*judgement.pair.prompt, *judgement.turns(number)) for number in (judgement.preferred, 1 - judgement.preferred)]
        texts = [_transcript(talk) for talk in talks]
        if any(text is None for text in texts):
            yield "a system or tool turn, white space around a turn, or a turn that holds Human: or Assistant: on a line of its own"
            continue
        row = {"chosen": texts[0], "rejected": texts[1], **_about(judgement)}
        yield {key: value for key, value in row.items() if value is not None}


def _transcript(talk: Sequence[Message]) -> str | None:
    """A conversation as a transcript; None when it cannot be read back as it was."""
    if any(turn.role not in _NAMES for turn in talk):
        return None
    text = "".join(f"\n\n{_NAMES[turn.role]}: {turn.content}" for turn in talk)
    try:
        return text if transcript(text) == tuple(talk) else None
    except BadRow:
        return None


def label_studio_tasks(judgements: Iterable[Judgement]) -> list[dict[str, Any]]:
    """One task for every pair of texts, with everybody's annotation of it; a skipped pair is a cancelled annotation."""
    tasks: dict[str, dict[str, Any]] = {}
    people: dict[str, int] = {}
    for number, judgement in enumerate((judgement.settled() for judgement in judgements), 1):
        pair = judgement.pair
        shown = [_text(answer.turns) for answer in pair.answers]
        data = {"prompt": _text(pair.prompt), **dict(zip(ANSWERS, shown, strict=True)), "pair": pair.as_row()}
        task = tasks.setdefault(pair.id, {"id": len(tasks) + 1, "data": data, "annotations": [], "predictions": []})
        results = [] if judgement.preferred is None else _results(judgement)
        who = people.setdefault(judgement.annotator, len(people) + 1)
        task["annotations"].append({
            "id": number, "completed_by": {"id": who, "email": judgement.annotator}, "result": results, "created_at": judgement.time,
            "was_cancelled": judgement.preferred is None, "lead_time": judgement.seconds, "ground_truth": False,
            "meta": {"left": judgement.left},
        })  # fmt: skip
    return list(tasks.values())


def _results(judgement: Judgement) -> list[dict[str, Any]]:
    side = "left" if judgement.preferred == 0 else "right"
    results: list[dict[str, Any]] = [
        {"id": "better", "from_name": "better", "to_name": ",".join(ANSWERS), "type": "pairwise", "value": {"selected": side}}
    ]
    chosen = {"grade": judgement.grade, "domain": judgement.domain, "safety": judgement.safety, "categories": list(judgement.categories)}
    for name, value in chosen.items():
        if value:
            choices = value if isinstance(value, list) else [value]
            results.append({"id": name, "from_name": name, "to_name": "prompt", "type": "choices", "value": {"choices": choices}})
    return results


def _text(turns: Sequence[Message]) -> str:
    """A single turn as it is, several with their roles before them."""
    return turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def read_file(path: Path, moment: str) -> Imported:
    """The judgements and pairs of a file, its form detected. `moment` is the time of those that have none.

    Raises what `data.formats.read` raises for rows of prompt/chosen/rejected and HH, DataError for a file that holds neither those nor
    Label Studio's tasks.
    """
    tasks = _tasks(path)
    found = _from_tasks(tasks, path.name, moment) if tasks is not None else _from_rows(path, moment)
    if not found.judgements and not found.pairs:
        why = found.left_out[0] if found.left_out else "no rows"
        known = "prompt/chosen/rejected, HH transcripts or Label Studio's tasks"
        raise DataError(f"{path} holds no preferences", found=why, expected=known)
    return found


def _tasks(path: Path) -> list[Any] | None:
    """The tasks of a Label Studio export, None for any other file."""
    if not path.is_file() or ".json" not in path.suffixes:
        return None
    with open_bytes(path) as stream:
        try:
            value = json.loads(stream.read())
        except (ValueError, RecursionError):
            return None
    is_tasks = isinstance(value, list) and value and all(isinstance(item, dict) and isinstance(item.get("data"), dict) for item in value)
    return value if is_tasks else None


def _from_rows(path: Path, moment: str) -> Imported:
    """Preferences as data/formats reads them; what their records do not hold is taken from the same lines of a .jsonl."""
    dataset = read(path)
    lines: dict[str, Any] = {}
    if path.is_file() and ".jsonl" in path.suffixes:
        try:
            lines = {f"{path.name}:{number}": row for number, row in enumerate(read_jsonl(path), 1)}
        except (DamagedFile, UnicodeDecodeError) as error:
            raise DataError(f"{path} has lines that are no JSON", found=error, fix="Mend or delete them.") from error
    found = Imported()
    for record, origin in zip(dataset.records, dataset.origins, strict=True):
        if not isinstance(record, Preference):
            found.left_out.append(f"{origin}: {type(record).__name__.lower()}, no preference")
            continue
        _take(found, origin, partial(_of_row, record, lines.get(origin, {}), path.name, moment))
    return found


def _of_row(record: Preference, row: Row, origin: str, moment: str) -> Judgement:
    pair = Pair.of(record)
    good = 0 if pair.answers[0].turns == record.chosen else 1
    writers = row.get("writers")
    if isinstance(writers, Mapping):
        order = ("chosen", "rejected") if good == 0 else ("rejected", "chosen")
        answers = [Answer(answer.turns, dict(writers.get(word) or {})) for answer, word in zip(pair.answers, order, strict=True)]
        pair = Pair(pair.prompt, (answers[0], answers[1]))
    left = {"chosen": good, "rejected": 1 - good}.get(str(row.get("left")))
    return Judgement(
        pair, name_of(str(row.get("annotator") or "imported")), 0, _moment(row.get("time"), moment), left, good, record.grade,
        _one(row.get("domain"), DOMAINS), record.safety, tuple(map(str, row.get("categories") or ())),
        seconds=float(row.get("seconds") or 0), origin=origin,
    )  # fmt: skip


def _from_tasks(tasks: Sequence[Row], origin: str, moment: str) -> Imported:
    found = Imported()
    for number, task in enumerate(tasks, 1):
        annotations = task.get("annotations") or []
        place = f"task {number}"
        if not annotations:
            _take(found, place, partial(_pair, task["data"], ANSWERS))
        for annotation in annotations:
            _take(found, place, partial(_annotation, task["data"], annotation, origin, moment))
    return found


def _annotation(data: Row, annotation: Row, origin: str, moment: str) -> Judgement:
    results = {str(result.get("from_name")): result for result in annotation.get("result") or []}
    better = next((result for result in results.values() if result.get("type") == "pairwise"), None)
    if better is None and not annotation.get("was_cancelled"):
        raise ValueError("an annotation without a result of the type pairwise")
    names = str(better["to_name"]).split(",") if better else ANSWERS
    pair, numbers = _numbered(data, names)
    preferred = None
    if better is not None:
        preferred = numbers[{"left": 0, "right": 1}[better["value"]["selected"]]]
    who = annotation.get("completed_by")
    name = who.get("email") or who.get("id") if isinstance(who, Mapping) else who
    left = (annotation.get("meta") or {}).get("left", numbers[0])
    when = _moment(annotation.get("created_at"), moment)

    def chosen(kind: str) -> list[str]:
        return list(map(str, (results.get(kind) or {"value": {}})["value"].get("choices") or []))

    return Judgement(
        pair, name_of(str(name or "imported")), 0, when, left if left in (0, 1) else None, preferred,
        _one(next(iter(chosen("grade")), None), GRADES), _one(next(iter(chosen("domain")), None), DOMAINS),
        _one(next(iter(chosen("safety")), None), SAFETY), tuple(chosen("categories")), seconds=float(annotation.get("lead_time") or 0),
        origin=origin,
    )  # fmt: skip


def _numbered(data: Row, names: Sequence[str]) -> tuple[Pair, tuple[int, int]]:
    """A task's pair, and the numbers in it of its first and second text."""
    if isinstance(data.get("pair"), Mapping):  # exported by us, in the order of its numbers
        return Pair.from_row(data["pair"]), (0, 1)
    pair = _pair(data, names)
    first = 0 if _text(pair.answers[0].turns) == data[names[0] if names[0] in data else ANSWERS[0]] else 1
    return pair, (first, 1 - first)


def _pair(data: Row, names: Sequence[str]) -> Pair:
    """The pair of a task's data: `prompt` as text or turns, and the two texts that the comparison names."""
    if isinstance(data.get("pair"), Mapping):
        return Pair.from_row(data["pair"])
    names = names if all(name in data for name in names) else ANSWERS
    missing = [name for name in ("prompt", *names) if not isinstance(data.get(name), str | list)]
    if missing:
        raise ValueError(f"its data has {', '.join(map(str, data))}, not {' and '.join(missing)}")
    prompt = data["prompt"] if isinstance(data["prompt"], list) else [{"role": "user", "content": data["prompt"]}]
    answers = [Answer((Message("assistant", str(data[name])),)) for name in names]
    return checked(Pair.ordered(messages(prompt), answers))


def _one(value: Any, words: Sequence[str]) -> str | None:
    if value in (None, ""):
        return None
    if value not in words:
        raise ValueError(f"{value!r} is not one of {', '.join(words)}")
    return str(value)


def _moment(value: Any, instead: str) -> str:
    """A time as it stands in a file, if it is ISO 8601 with its zone."""
    if value in (None, ""):
        return instead
    if datetime.fromisoformat(str(value)).tzinfo is None:
        raise ValueError(f"the time {value} does not say its zone")
    return str(value)


def _take(found: Imported, place: str, make: Callable[[], Judgement | Pair]) -> None:
    """Add what `make` gives, or the reason why it cannot."""
    try:
        made = make()
    except (BadRow, ValueError, LookupError, TypeError, AttributeError) as error:
        found.left_out.append(f"{place}: {error}")
        return
    if isinstance(made, Pair):
        found.pairs.append(made)
    else:
        found.judgements.append(made)
