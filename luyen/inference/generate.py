"""Answers from a decoder: many prompts at once, or one token after another.

Prompts of different lengths are read flat, without padding, and equal ones once; then each step takes one token for every row that has
not finished, and finished rows leave the batch. Each row draws from a generator of its own, seeded by its prompt, so an
answer does not depend on what else is in the batch or in which order.

Shapes: B rows, T tokens, D hidden size, V vocabulary, S prompts read in one pass.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luyen.adapters.many import using
from luyen.adapters.preamble import preamble_of
from luyen.core import interrupt
from luyen.core.errors import DataError, NonFinite
from luyen.core.seed import derive
from luyen.inference.cache import KeyValueCache, PromptCache
from luyen.inference.config import SamplingConfig
from luyen.inference.packed import packed
from luyen.inference.sampling import choose
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer

PROMPT_TOKENS = 8192
"""Prompts are read in passes of about this many tokens, which bounds the memory of activations."""
SMALL_STEP = 4_000_000
"""Steps of fewer weights times rows run on one CPU thread: they are shorter than what two threads need to meet."""
KEEP_SHARE = 0.8
"""Rows are dropped from the cache once the unfinished ones are fewer than this share, since dropping copies the cache."""


@dataclass(frozen=True)
class Generation:
    """An answer: its ids without the one that ended it, and whether one did."""

    ids: list[int]
    stopped: bool
    end: int | None = None
    """The id that ended it."""


class _Decoding:
    """A batch under way. `step` gives the next token of every row; `keep` drops rows."""

    def __init__(
        self, model: Transformer, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, copies: Sequence[int],
        adapters: Sequence[str | None] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.sampling, self.steps = model, sampling, 0
        self.device, limit = model.head_weight.device, model.config.context_length
        self.preamble = preamble_of(model)
        lengths = [self.preamble + len(prompt) for prompt in prompts]
        self.limits = [min(sampling.max_new_tokens, limit - length) for length in lengths]
        # The last token needs no place: nothing comes after it.
        self.cache = KeyValueCache(model.config, lengths, max(self.limits) - 1, self.device, model.head_weight.dtype)
        self.prompts = prompts
        first: dict[tuple[str | None, tuple[int, ...]], int] = {}
        keys = zip(adapters or [None] * len(prompts), map(tuple, prompts), strict=True)
        self.reads = [first.setdefault(key, row) for row, key in enumerate(keys)]
        """Of each row the first that has the same prompt and adapter: that one reads it."""
        self.weights = sum(parameter.numel() for parameter in model.parameters())
        self.tokens: Tensor | None = None
        self.uniform: Tensor | None = None
        if sampling.temperature > 0:
            rows = [_uniform(sampling, prompt, copy) for prompt, copy in zip(prompts, copies, strict=True)]
            self.uniform = torch.stack(rows).to(self.device)
        self.seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=self.device)
            for row, prompt in enumerate(prompts):
                self.seen[row, torch.tensor(prompt, device=self.device)] = True

    @torch.inference_mode()
    def step(self) -> list[int]:
        """The next token of every row still kept."""
        if self.tokens is None:
            logits_BV = self._read_prompts()
        else:
            self.cache.advance()
            with _threads_for(self.weights * len(self.tokens), self.device):
                hidden_BTD = self.model(self.tokens[:, None], cache=self.cache)
                logits_BV = self.model.logits(hidden_BTD[:, -1])
        uniform_B = None if self.uniform is None else self.uniform[:, self.steps]
        self.tokens = choose(logits_BV, self.sampling, uniform_B, self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, self.tokens[:, None], True)
        self.steps += 1
        return self.tokens.tolist()

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        kept_B = torch.tensor(rows, device=self.device)
        self.cache.keep(kept_B)
        self.tokens = None if self.tokens is None else self.tokens[kept_B]
        self.uniform = None if self.uniform is None else self.uniform[kept_B]
        self.seen = None if self.seen is None else self.seen[kept_B]

    def _read_prompts(self) -> Tensor:
        scores, readers = [], list(dict.fromkeys(self.reads))
        while readers:
            count, total = 1, len(self.prompts[readers[0]])
            while count < len(readers) and total + len(self.prompts[readers[count]]) <= PROMPT_TOKENS:
                total += len(self.prompts[readers[count]])
                count += 1
            rows, readers = readers[:count], readers[count:]
            flat = [token for row in rows for token in self.prompts[row]]
            lengths = [len(self.prompts[row]) for row in rows]
            reader = PromptCache(self.cache, rows, Layout.packed([self.preamble + length for length in lengths], self.device))
            hidden_1TD = self.model(torch.tensor([flat], device=self.device), cache=reader)
            scores.append(self.model.logits(hidden_1TD[0, Layout.packed(lengths, self.device).last_S]))
        self.cache.share(self.reads)
        place = {row: number for number, row in enumerate(dict.fromkeys(self.reads))}
        logits_BV = torch.cat(scores)[[place[row] for row in self.reads]]
        if not torch.isfinite(logits_BV).all():
            raise NonFinite("the model's scores of the next token are not finite numbers; its weights are damaged or training diverged")
        return logits_BV


@contextlib.contextmanager
def _threads_for(work: int, device: torch.device) -> Iterator[None]:
    """One CPU thread within the block when the work is small."""
    before = torch.get_num_threads()
    if device.type != "cpu" or work >= SMALL_STEP or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generate(
    model: Transformer, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stop_ids: Collection[int] = (), max_rows: int = 128,
    adapters: Sequence[str | None] | None = None,
) -> list[Generation]:  # fmt: skip
    """The answer to each prompt, in order; at most `max_rows` at once.

    An answer ends at one of `stop_ids`, after max_new_tokens, or at the model's context length. Equal prompts get
    different draws, the same ones every time. `adapters`: for each prompt the one that answers, of those that the model carries
    (luyen/adapters/many.py), or None; each gets the draws that it would get alone. Raises DataError for a prompt that is empty, too
    long or not of this vocabulary, ModelError for an adapter that is not carried.
    """
    if adapters is not None:
        if len(adapters) != len(prompts):
            raise DataError("adapters", found=f"{len(adapters)} names for {len(prompts)} prompts", expected="one, or None, for each")
        with using(model, adapters):
            return _generate(model, prompts, sampling, stop_ids, max_rows, adapters)
    return _generate(model, prompts, sampling, stop_ids, max_rows, [None] * len(prompts))


def _generate(
    model: Transformer, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stop_ids: Collection[int], max_rows: int,
    adapters: Sequence[str | None],
) -> list[Generation]:  # fmt: skip
    """Prompts that are equal, also in their adapter, are counted: each has draws of its own."""
    preamble = preamble_of(model)
    for number, prompt in enumerate(prompts):
        _check(model, prompt, f"prompt {number + 1} of {len(prompts)}", preamble)
    occurrences: Counter[tuple[str | None, tuple[int, ...]]] = Counter()
    copies = []
    for key in zip(adapters, map(tuple, prompts), strict=True):
        copies.append(occurrences[key])
        occurrences[key] += 1
    answers: dict[int, Generation] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # equal lengths waste no columns of the cache
    for first in range(0, len(order), max_rows):
        members = order[first : first + max_rows]
        asked, numbers = [prompts[index] for index in members], [copies[index] for index in members]
        batch = _Decoding(model, asked, sampling, numbers, [adapters[index] for index in members])
        batch.cache.sequences = torch.tensor(members, device=batch.device)
        with packed(model, len(members), max(batch.limits)):
            found = _finish(batch, frozenset(stop_ids))
        answers.update(zip(members, found, strict=True))
    return [answers[index] for index in range(len(prompts))]


def _finish(batch: _Decoding, stop_ids: frozenset[int]) -> list[Generation]:
    """Step until every row has ended."""
    ids: list[list[int]] = [[] for _ in batch.prompts]
    ends: list[int | None] = [None] * len(ids)
    kept = list(range(len(ids)))
    running = set(kept)
    while running:
        interrupt.check()
        for row, token in zip(kept, batch.step(), strict=True):
            if row not in running:
                continue
            if token in stop_ids:
                ends[row] = token
            else:
                ids[row].append(token)
            if ends[row] is not None or len(ids[row]) == batch.limits[row]:
                running.remove(row)
        if running and len(running) < KEEP_SHARE * len(kept):
            places = [place for place, row in enumerate(kept) if row in running]
            batch.keep(places)
            kept = [kept[place] for place in places]
    return [Generation(answer, end is not None, end) for answer, end in zip(ids, ends, strict=True)]


def generate_each(
    model: Transformer, prompts: Mapping[str | None, Sequence[int]], sampling: SamplingConfig, ends: Mapping[str | None, Collection[int]]
) -> dict[str | None, list[int]]:
    """What each adapter (None: the model itself) says to the prompt under its name, as ids; those that stop at the same ids in one batch.

    `ends`: the stop ids of each.
    """
    same: dict[frozenset[int], list[str | None]] = {}
    for name in prompts:
        same.setdefault(frozenset(ends[name]), []).append(name)
    said: dict[str | None, list[int]] = {}
    for stop_ids, names in same.items():
        made = generate(model, [prompts[name] for name in names], sampling, stop_ids, adapters=names)
        said.update((name, answer.ids) for name, answer in zip(names, made, strict=True))
    return {name: said[name] for name in prompts}


def stream(
    model: Transformer, prompt: Sequence[int], sampling: SamplingConfig, stop_ids: Collection[int] = (), copy: int = 0,
    adapter: str | None = None,
) -> Iterator[int]:  # fmt: skip
    """The same answer as `generate` to one prompt, id by id as it is made. Closing the iterator ends the work.

    `copy`: which of equal prompts this is, from 0; each has draws of its own. `adapter`: the one that answers, of those that the model
    carries; None: what a `using` block around it says, else none.
    """
    _check(model, prompt, "the prompt", preamble_of(model))
    with _chosen(model, adapter):  # a name that is not carried is told now
        batch = _Decoding(model, [prompt], sampling, [copy])
    return _stream(batch, frozenset(stop_ids), adapter)


def _chosen(model: Transformer, adapter: str | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if adapter is None else using(model, [adapter])


def _stream(batch: _Decoding, stop_ids: frozenset[int], adapter: str | None) -> Iterator[int]:
    for _ in range(batch.limits[0]):
        with _chosen(batch.model, adapter):  # for the step alone: between two the model is the caller's
            token = batch.step()[0]
        if token in stop_ids:
            return
        yield token


def _uniform(sampling: SamplingConfig, prompt: Sequence[int], copy: int) -> Tensor:
    """The draws in [0, 1) of one answer, float64 on the CPU whatever the device."""
    generator = torch.Generator().manual_seed(derive(sampling.seed, "sampling", list(prompt), copy))
    return torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64)


def _check(model: Transformer, prompt: Sequence[int], name: str, preamble: int) -> None:
    config = model.config
    if not prompt:
        raise DataError(f"{name} is empty", expected="at least one token", fix="Begin with the tokenizer's bos token.")
    if preamble + len(prompt) >= config.context_length:
        raise DataError(
            f"{name} leaves no room for an answer",
            found=f"{len(prompt)} tokens" + f" behind {preamble} learned positions" * bool(preamble),
            expected=f"under {config.context_length - preamble}",
            fix="Shorten it.",
        )
    if min(prompt) < 0 or max(prompt) >= config.vocab_size:
        found = next(token for token in prompt if not 0 <= token < config.vocab_size)
        raise DataError(
            f"{name} holds an unknown token", found=found, expected=f"ids below {config.vocab_size}", fix="Use the model's tokenizer."
        )
