"""Prompts that models write answers to, from whatever a stage is given: questions with right answers, conversations, preferences, texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luyen.core import progress
from luyen.core.errors import DamagedFile, DataError
from luyen.core.files import read_jsonl
from luyen.core.plural import exactly
from luyen.core.records import Completion, Conversation, Extractive, Feedback, Message, Plain, Preference, Record
from luyen.data.config import ReadConfig
from luyen.data.samples import extractive_messages
from luyen.recipe.documents import read_whole
from luyen.recipe.stage import Stage
from luyen.tasks.question_answering import Example, read_examples
from luyen.tokenizer.chat import render_batch
from luyen.tokenizer.load import Tokenizer


def read_prompts(path: Path, config: ReadConfig, rejected: Path) -> list[Example]:
    """The prompts of a file or folder, each up to and including its question; `answer` is the one that the data has, "" where it has none.

    Questions of an evaluation.jsonl keep their ids, others are numbered. Raises what reading raises, DataError where nothing asks.
    """
    if _is_questions(path):
        return read_examples(path)
    dataset = read_whole(path, config, rejected)
    found = [_example(f"prompt:{number}", record) for number, record in enumerate(dataset.records)]
    prompts = [example for example in found if example is not None]
    if len(prompts) < len(found):
        progress.say(f"  left out: {exactly(len(found) - len(prompts), 'row')} of {path.name} that ask nothing")
    if not prompts:
        raise DataError(f"{path} holds no prompts", found=dataset.format, expected="questions, conversations, preferences or texts")
    return prompts


def stage_prompts(values: str | Sequence[str], config: ReadConfig, stage: Stage, name: str = "rejected") -> list[Example]:
    """The prompts of one source or of several, by stage or path; ids of several begin with the source's number."""
    sources = [values] if isinstance(values, str) else values
    found: list[Example] = []
    for number, value in enumerate(sources):
        one = isinstance(values, str)
        prompts = read_prompts(stage.data(value), config, stage.folder / f"{name}{'' if one else f'-{number}'}.jsonl")
        found += prompts if one else [replace(example, id=f"{number}:{example.id}") for example in prompts]
    return found


def rendered_prompts(prompts: Sequence[Example], tokenizer: Tokenizer, most: int) -> list[tuple[Example, list[int]]]:
    """Prompts with their ids in the chat template, up to where an answer begins; those of more than `most` tokens are left out and counted.

    Raises DataError when none is left.
    """
    rendered = render_batch(tokenizer, [prompt.messages for prompt in prompts], add_generation_prompt=True)
    kept = [(prompt, row.ids) for prompt, row in zip(prompts, rendered, strict=True) if len(row.ids) <= most]
    longest = max((len(row.ids) for row in rendered), default=0)
    if len(kept) < len(prompts):
        progress.say(f"  {exactly(len(prompts) - len(kept), 'prompt')} of more than {most:,} tokens left out (up to {longest:,})")
    if not kept:
        raise DataError("no prompt leaves room for an answer", found=f"{longest:,} tokens", expected=f"at most {most:,}",
                        fix="Lower max_new_tokens, or shorten the prompts.")  # fmt: skip
    return kept


def _is_questions(path: Path) -> bool:
    """Whether a file has the rows of an evaluation.jsonl."""
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    try:
        first = next(read_jsonl(path), None)
    except (DamagedFile, UnicodeDecodeError):
        return False  # the reader of any data says what is wrong with it
    return isinstance(first, dict) and {"id", "messages", "answer"} <= first.keys()


def _example(identifier: str, record: Record) -> Example | None:
    """A record as a question and the answer that it has; None where nobody asks."""
    answer = ""
    match record:
        case Conversation(messages=turns):
            messages, answer = (turns[:-1], turns[-1].content) if turns[-1].role == "assistant" else (turns, "")
        case Preference(prompt=messages, chosen=chosen):
            answer = chosen[-1].content
        case Feedback(prompt=messages):
            pass
        case Completion(prompt=text, completion=answer):
            messages = (Message("user", text),)
        case Extractive():
            turns = tuple(extractive_messages(record))
            messages, answer = turns[:1], turns[1].content if len(turns) > 1 else ""
        case Plain(text=text):
            messages = (Message("user", text),)
        case _:
            return None
    return Example(identifier, tuple(messages), answer) if messages and messages[-1].role in ("user", "tool") else None
