"""Rows of each known form as typed records. A function here gets a row whose columns fit its form and raises BadRow with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luyen.core.records import Completion, Conversation, Extractive, Feedback, Labelled, Message, Plain, Preference, Record, Tagged
from luyen.data.source import shown
from luyen.data.turns import BadRow, check_turns, hash_turns, is_transcript, kind, messages, transcript

Row = Mapping[str, Any]
Convert = Callable[[Row], list[Record]]
GRADES = ("significantly_better", "better", "slightly_better", "negligibly_better")
"""Llama 2 (Touvron et al., 2023, arXiv:2307.09288), table 27."""
SAFETY = ("chosen_safe", "both_safe", "both_unsafe")
"""The same, section 3.2.1; that the rejected answer alone is safe does not occur there."""
_TRUTHS = {
    "true": True, "1": True, "1.0": True, "good": True, "desirable": True,
    "false": False, "0": False, "0.0": False, "bad": False, "undesirable": False,
}  # fmt: skip
QUESTIONS = ("prompt", "instruction", "question", "query")


def text_of(row: Row, column: str) -> str:
    """A column that must hold text; BadRow when it is missing or something else."""
    if row.get(column) is None:
        raise BadRow(f"{column!r} is missing")
    if not isinstance(row[column], str):
        raise BadRow(f"{column!r} is {kind(row[column])}, not text")
    return str(row[column])


def _optional(row: Row, column: str) -> str:
    return text_of(row, column) if row.get(column) is not None else ""


def plain(row: Row, column: str) -> list[Record]:
    """{"text"}."""
    text = text_of(row, column)
    if not text.strip():
        raise BadRow(f"an empty {column}")
    return [Plain(text)]


def hash_text(row: Row) -> list[Record]:
    """{"text": "### Human: ... ### Assistant: ..."}."""
    return [Conversation(check_turns(hash_turns(text_of(row, "text"))))]


def chat(row: Row, column: str) -> list[Record]:
    """{"messages": [{"role", "content"}]} or {"conversations": [{"from", "value"}]}, with optional system and tools columns."""
    return [Conversation(check_turns([*_system(row), *messages(row.get(column), column)]))]


def _system(row: Row) -> list[Message]:
    """One system turn from the columns system (or system_prompt) and tools, if they hold anything."""
    tools = row.get("tools")
    tools = tools if isinstance(tools, str) or not tools else json.dumps(tools, ensure_ascii=False)
    about_tools = f"Tools: {tools}" if tools and tools.strip() not in ("[]", "{}") else ""
    texts = (_optional(row, "system") or _optional(row, "system_prompt"), about_tools)
    content = "\n\n".join(text for text in texts if text.strip())
    return [Message("system", content)] if content else []


def instruction(row: Row, question: str, answer: str) -> list[Record]:
    """{"instruction", "input", "output"} (Alpaca) and its relatives; `history` holds earlier [question, answer] pairs."""
    asked, given = text_of(row, question), _optional(row, "input") if question != "input" else ""
    history = []
    earlier = row.get("history") or []
    if not isinstance(earlier, Sequence):
        raise BadRow(f"history is {kind(earlier)}, not a list of [question, answer] pairs")
    for pair in earlier:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRow("history holds something else than [question, answer] pairs")
        history += [Message("user", pair[0]), Message("assistant", pair[1])]
    user = "\n\n".join(text for text in (asked, given) if text.strip())
    turns = [*_system(row), *history, Message("user", user), Message("assistant", text_of(row, answer))]
    return [Conversation(check_turns(turns))]


def instances(row: Row) -> list[Record]:
    """{"instruction", "instances": [{"input", "output"}]} (Self-Instruct): one conversation for each instance."""
    found = row.get("instances")
    if not isinstance(found, list) or not found or not all(isinstance(item, Mapping) for item in found):
        raise BadRow("'instances' is not a list of input and output")
    return [record for item in found for record in instruction({**item, "instruction": row.get("instruction")}, "instruction", "output")]


def completion(row: Row) -> list[Record]:
    """{"prompt", "completion"} as raw text, or both as turns."""
    if isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list):
        return [Conversation(check_turns([*_turns(row, "prompt", "user"), *_turns(row, "completion", "assistant")]))]
    result = Completion(text_of(row, "prompt"), text_of(row, "completion"))
    if not result.completion.strip():
        raise BadRow("an empty answer")
    return [result]


def _turns(row: Row, column: str, role: str) -> tuple[Message, ...]:
    """A column that holds turns, or text that is one turn of `role`."""
    value = row.get(column)
    if isinstance(value, str) and not value.lstrip().startswith(('[{"role"', '[{"from"')):
        return (Message("user" if role == "user" else "assistant", value),)
    if value is None:
        raise BadRow(f"{column!r} is missing")
    return messages(value, column)


def feedback(row: Row, answer: str) -> list[Record]:
    """{"prompt", "completion", "label"}, or {"messages", "label"} where the last turn is the one judged."""
    if answer in ("messages", "conversations"):
        turns = check_turns([*_system(row), *messages(row.get(answer), answer)])
        return [Feedback(turns[:-1], turns[-1:], _truth(row.get("label")))]
    prompt, given = [*_system(row), *_turns(row, "prompt", "user")], _turns(row, answer, "assistant")
    check_turns([*prompt, *given])
    return [Feedback(tuple(prompt), given, _truth(row.get("label")))]


def _truth(value: Any) -> bool:
    if not is_truth(value):
        raise BadRow(f"the label is {shown(value)}, not true or false")
    return _TRUTHS[_plain(value)]


def _plain(value: Any) -> str:
    return str(value).strip().lower() if isinstance(value, str | int | float) else ""


def is_truth(value: Any) -> bool:
    """Whether a label says good or bad; tables hold it as text, and as a float where a value of the column is missing."""
    return _plain(value) in _TRUTHS


def preference(row: Row) -> list[Record]:
    """{"prompt", "chosen", "rejected"} as text or turns, HH transcripts, or both answers with their prompt inside."""
    good, bad = row.get("chosen"), row.get("rejected")
    if isinstance(good, str) and isinstance(bad, str) and is_transcript(good) and is_transcript(bad):
        prompt, chosen, rejected = _common(transcript(good), transcript(bad))
    else:
        chosen, rejected = _turns(row, "chosen", "assistant"), _turns(row, "rejected", "assistant")
        prompt = tuple(_system(row)) + _prompt(row)
        branches = bool(prompt) and chosen[0].role == rejected[0].role == "assistant"  # of several turns each, from the prompt on
        if any(turn.role == "user" for turn in chosen) and not branches:
            shared, chosen, rejected = _common(chosen, rejected)
            prompt = shared if shared[: len(prompt)] == prompt or shared[-len(prompt) :] == prompt else prompt + shared
    if not prompt:
        raise BadRow("there is no prompt: neither a column of its own nor turns before the answers")
    check_turns(prompt, last="user")
    check_turns([*prompt, *chosen])
    check_turns([*prompt, *rejected])
    if chosen == rejected:
        raise BadRow("chosen and rejected are equal")
    return [Preference(prompt, chosen, rejected, _margin(row), _one_of(row, "grade", GRADES), _one_of(row, "safety", SAFETY))]


def _prompt(row: Row) -> tuple[Message, ...]:
    if "conversations" in row:
        return messages(row["conversations"], "conversations")
    for column in QUESTIONS:
        if row.get(column) is not None:
            turns = _turns(row, column, "user")
            extra = _optional(row, "input")
            return (Message("user", f"{turns[0].content}\n\n{extra}"),) if extra.strip() and len(turns) == 1 else turns
    return ()


def _common(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """The shared turns before the last one, and the last of each."""
    if tuple(chosen[:-1]) != tuple(rejected[:-1]):
        raise BadRow("chosen and rejected have different prompts")
    return tuple(chosen[:-1]), tuple(chosen[-1:]), tuple(rejected[-1:])


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"the {what} is {shown(value)}, not a number")
    return number


def _margin(row: Row) -> float | None:
    if row.get("margin") not in (None, ""):
        margin = _number(row["margin"], "margin")
    elif row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        margin = _number(row["score_chosen"], "score") - _number(row["score_rejected"], "score")
    else:
        return None
    if margin < 0:
        raise BadRow(f"a negative margin ({margin:g}): the rejected answer is the better one")
    return margin


def _one_of(row: Row, column: str, known: Sequence[str]) -> str | None:
    """A column that is empty or holds one of a few words, however they are spaced and capitalised."""
    if row.get(column) in (None, ""):
        return None
    word = text_of(row, column).strip().lower().replace(" ", "_").replace("-", "_")
    if word not in known:
        raise BadRow(f"the {column} is {shown(row[column])}, not one of {', '.join(known)}")
    return word


def squad(row: Row) -> list[Record]:
    """{"question", "context", "answers"}: answers as {"text": [...]}, a list of {"text"} or of texts. An empty list: unanswerable."""
    question, context = text_of(row, "question"), text_of(row, "context")
    if not question.strip() or not context.strip():
        raise BadRow("an empty question or context")
    answers = row.get("answers")
    if isinstance(answers, str):
        answers = _json(answers, "'answers'") if answers.lstrip().startswith(("[", "{")) else [answers]
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if not isinstance(answers, list):
        raise BadRow(f"'answers' is {kind(row.get('answers'))}, not a list of texts")
    found = [item.get("text") if isinstance(item, Mapping) else item for item in answers]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise BadRow("'answers' holds something else than texts")
    if any(not text.strip() for text in texts):
        raise BadRow("an empty answer")
    return [Extractive(question, context, tuple(texts))]


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"{what} is text that is not JSON") from error
    except RecursionError as error:
        raise BadRow(f"{what} is text nested too deeply") from error


def labelled(row: Row, text: str, pair: str | None, label: str) -> list[Record]:
    """A text or a pair of texts with a class, whose name is kept as text."""
    found = row.get(label)
    if found is None or isinstance(found, (Mapping, list)) or not str(found).strip():
        raise BadRow(f"{label!r} is {kind(found) if str(found).strip() else 'empty'}, not a class")
    if isinstance(found, float) and math.isnan(found):  # a class that is missing in a column of floats
        raise BadRow(f"{label!r} is nan, not a class")
    record = Labelled(text_of(row, text), str(found), text_of(row, pair) if pair else None)
    if not record.text.strip():
        raise BadRow(f"an empty {text}")
    return [record]


def tagged(row: Row, column: str) -> list[Record]:
    """{"tokens": [...], "tags": [...]} of equal length."""
    words, tags = row.get("tokens"), row.get(column)
    if not isinstance(words, list) or not isinstance(tags, list):
        raise BadRow(f"'tokens' and {column!r} are not both lists")
    if len(words) != len(tags) or not words:
        raise BadRow(f"{len(words)} tokens and {len(tags)} tags")
    if not all(isinstance(word, str) and word for word in words):
        raise BadRow("a token is empty or not text")
    return [Tagged(tuple(words), tuple(str(tag) for tag in tags))]
