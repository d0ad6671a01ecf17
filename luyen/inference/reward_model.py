"""What a reward model says of conversations, from their text.

The number is read at the token that ends the last turn of the assistant: the template's end of turn, which the model that wrote the answer
learned to write, and not at white space that the template puts behind it. Training reads it at the same token (algorithms/reward_model.py).

Conversations that stand together and have the same turns before the last are one group: their prompt is read once. Groups of about the
same length are read together, without padding; the order and the company of a conversation change its number by no more than rounding.

Shapes: S conversations, D hidden size, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from luyen.core.device import pick_device
from luyen.core.errors import DataError, ModelError
from luyen.core.records import Message
from luyen.data.branches import Group, collate_groups
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.models import scored_files
from luyen.models.attention import Layout
from luyen.models.scored import ScoredDecoder
from luyen.tokenizer.chat import Rendered, render_batch
from luyen.tokenizer.load import Tokenizer

BATCH_TOKENS = 8192
"""Tokens read together at most, unless one group alone has more."""
Conversation = Sequence[Message]


def open_reward_model(name: str | Path, device: str = "auto") -> tuple[ScoredDecoder, Tokenizer]:
    """A reward model in fp32 with its tokenizer, from a folder, a stage's folder or a hub name. ModelError, DamagedFile."""
    folder = scored_files.locate(name)
    return scored_files.load(folder, pick_device(device)).eval(), Tokenizer.load(folder)


def score_texts(model: ScoredDecoder, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> list[float]:
    """The reward of each conversation, in order; each ends with an answer of the assistant.

    Raises DataError for one that does not, or that is longer than the model's context.
    """
    return [float(row[0]) for row in score_outputs(model, tokenizer, conversations)]


def score_outputs(model: ScoredDecoder, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> torch.Tensor:
    """All outputs of the model for each conversation, (S, O), fp32 on the host: the reward, and where it has one the safety score."""
    return score_groups(model, _groups(model, tokenizer, conversations))


@torch.no_grad()
def score_groups(model: ScoredDecoder, groups: Sequence[Group]) -> torch.Tensor:
    """All outputs of the model at the last token of each sequence of the groups, in their order, (S, O), fp32 on the host."""
    device, places = model.score.weight.device, np.cumsum([0, *(len(group.sequences) for group in groups)])
    found_SO = torch.zeros(int(places[-1]), model.score.out_features)
    training = model.training
    model.eval()
    for chosen in _batches(groups):
        batch = collate_groups([groups[index] for index in chosen]).to(device)
        layout = Layout.branched(batch.lengths, batch.trunks, device)
        hidden_TD = model(batch.tokens_T[None], layout)[0]
        scores = model.scores(hidden_TD.index_select(0, batch.last_S)).cpu()
        found_SO[torch.from_numpy(np.concatenate([np.arange(places[index], places[index + 1]) for index in chosen]))] = scores
    model.train(training)
    return found_SO


def through_end(rendered: Rendered) -> list[int]:
    """The ids of a conversation through the token that ends its last answer, at which the reward is read. DataError without an answer."""
    end = next((place for place in range(len(rendered.ids) - 1, -1, -1) if rendered.trained[place]), None)
    if end is None:
        raise DataError("a conversation to score has no answer", expected="turns that end with the assistant's")
    return rendered.ids[: end + 1]


def _groups(model: ScoredDecoder, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> list[Group]:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ModelError("the tokenizer is not this reward model's", found=f"{tokenizer.vocab_size:,} tokens",
                         expected=f"at most the model's {model.config.vocab_size:,}")  # fmt: skip
    for number, turns in enumerate(conversations):
        if not turns or turns[-1].role != "assistant":
            raise DataError(f"conversation {number} does not end with an answer", found=turns[-1].role if turns else "no turns",
                            expected="the assistant's turn at the end")  # fmt: skip
    samples = []
    for number, rendered in enumerate(render_batch(tokenizer, conversations)):
        ids = through_end(rendered)
        if len(ids) > model.config.context_length:
            raise DataError(f"conversation {number} is too long for the reward model", found=f"{len(ids)} tokens",
                            expected=f"at most {model.config.context_length}", fix="Shorten it, or take another model.")  # fmt: skip
        samples.append(Sample(str(number), np.array(ids, np.int32), np.full(len(ids), NOT_TRAINED, np.int32)))
    alike = groupby(zip(conversations, samples, strict=True), key=lambda pair: tuple(pair[0][:-1]))
    return [Group(str(number), tuple(sample for _, sample in members)) for number, (_, members) in enumerate(alike)]


def _batches(groups: Sequence[Group]) -> list[list[int]]:
    """Groups of about the same length together."""
    longest = [max(len(sequence.tokens) for sequence in group.sequences) for group in groups]
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(groups)), key=lambda place: (longest[place], place)):
        size = longest[index] * len(groups[index].sequences)
        if size > room or not batches:
            batches.append([])
            room = BATCH_TOKENS
        batches[-1].append(index)
        room -= size
    return batches
