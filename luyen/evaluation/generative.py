"""Answers written by a model.

How a model is asked: in its tokenizer's chat template, one question a conversation, whether it was tuned for chat or not. A base
model and the chat model made from it share the template, so "before" and "after" read the very same ids. A tokenizer without a
template gets the plain text `Question: ...` and `Answer:` on lines of their own, and the answer is its first line.
"""

from __future__ import annotations

from collections.abc import Sequence

from luyen.adapters.preamble import room_of
from luyen.core import progress
from luyen.core.records import Message
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models.transformer import Transformer
from luyen.retrieval.context import context_message
from luyen.retrieval.index import Index
from luyen.tasks.question_answering import Answer, Example
from luyen.tokenizer.chat import render_batch
from luyen.tokenizer.load import Tokenizer

TEMPLATE_NOTE = "asked in the chat template, with nothing before the question"
PLAIN_NOTE = "asked as plain text (Question: ... Answer:), because its tokenizer has no chat template; the first line is the answer"


def answer(
    model: Transformer, tokenizer: Tokenizer, examples: Sequence[Example], sampling: SamplingConfig, *,
    batch_size: int = 64, index: Index | None = None, name: str = "answers",
) -> list[Answer]:  # fmt: skip
    """The model's answer to every example, in order. With an index the best relevant passage stands before the question where it fits.

    The model is left in the mode it was in. Raises DataError when a question is longer than the model's context.
    """
    prompts = _prompts(model, tokenizer, examples, sampling, index)
    was_training = model.training
    model.eval()
    answers: list[Answer] = []
    try:
        with progress.task(name, len(prompts), "questions") as task:
            for start in range(0, len(prompts), batch_size):
                batch = prompts[start : start + batch_size]
                for made in generate(model, batch, sampling, tokenizer.stop_ids, max_rows=batch_size):
                    answers.append(_answer(tokenizer, made.ids, made.stopped))
                task.advance(len(batch))
    finally:
        model.train(was_training)
    return answers


def _answer(tokenizer: Tokenizer, ids: Sequence[int], stopped: bool) -> Answer:
    text = tokenizer.decode(ids)
    if tokenizer.has_template:
        return Answer(text.strip(), stopped)
    line, newline, _ = text.strip().partition("\n")
    return Answer(line.strip(), stopped or bool(newline))


def _prompts(
    model: Transformer, tokenizer: Tokenizer, examples: Sequence[Example], sampling: SamplingConfig, index: Index | None
) -> list[list[int]]:
    if not tokenizer.has_template:
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return [begin + ids for ids in tokenizer.encode_batch([_plain(example.messages) for example in examples])]
    plain = [row.ids for row in render_batch(tokenizer, [example.messages for example in examples], add_generation_prompt=True)]
    if index is None:
        return plain
    room = room_of(model) - min(sampling.max_new_tokens, room_of(model) // 2)
    found = [index.relevant(example.question) for example in examples]
    talks = [[*([context_message([hit.passage.text])] if hit else []), *e.messages] for hit, e in zip(found, examples, strict=True)]
    grounded = [row.ids for row in render_batch(tokenizer, talks, add_generation_prompt=True)]
    return [long if len(long) <= room else short for long, short in zip(grounded, plain, strict=True)]


def _plain(messages: Sequence[Message]) -> str:
    names = {"user": "Question", "assistant": "Answer"}
    return "\n".join([*(f"{names.get(message.role, message.role)}: {message.content}" for message in messages), "Answer:"])
