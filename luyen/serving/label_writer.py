"""Answers written while people read: a thread that keeps pairs ready, so that nobody waits for a model.

For each prompt two of those who write (a model with a temperature) are drawn by the seed; where there is one alone, it answers twice. All
is drawn from the seed and the prompt, so that stopping and going on gives the same pairs.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from luyen.adapters import files
from luyen.core import interrupt, manifest, progress
from luyen.core.errors import Interrupted, LuyenError, ModelError
from luyen.core.plural import exactly
from luyen.core.records import Message
from luyen.core.seed import derive
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models.transformer import Transformer
from luyen.serving.label_records import Answer, Pair, told
from luyen.serving.label_store import Store
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer

TRIES = 4
"""How often two answers that came out equal are drawn anew before their prompt is left out."""
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Writer:
    """A model with the way its answers are drawn."""

    name: str
    folder: str
    weights: str
    """A hash of the model's folder; "" where it has no manifest."""
    model: Transformer
    tokenizer: Tokenizer
    sampling: SamplingConfig

    def told(self) -> dict[str, Any]:
        """What is kept of it beside an answer."""
        return {"model": self.name, "folder": self.folder, "weights": self.weights, "sampling": self.sampling.model_dump()}

    def write(self, prompt: Sequence[Message], seed: int) -> str:
        """Its answer to a prompt. Raises DataError where the prompt leaves no room or the template refuses it."""
        ids = render(self.tokenizer, prompt, add_generation_prompt=True).ids
        made = generate(self.model, [ids], self.sampling.model_copy(update={"seed": seed}), self.tokenizer.stop_ids)
        return self.tokenizer.decode(made[0].ids).strip()


def open_writers(
    models: Mapping[str, str], temperatures: Sequence[float], sampling: SamplingConfig, device: torch.device
) -> list[Writer]:  # fmt: skip
    """Every model with every temperature. Raises ModelError for a model without a chat template, and what opening a model raises."""
    found: list[Writer] = []
    for name, folder in models.items():
        tokenizer = Tokenizer.load(files.locate_tokenizer(folder))
        if not tokenizer.has_template:
            raise ModelError(f"{folder} has no chat template, so it cannot answer", fix="Fine-tune it with luyen sft.")
        model, weights = files.open_model(folder, device), _weights(folder)
        for temperature in dict.fromkeys(temperatures or [sampling.temperature]):
            drawn = SamplingConfig.model_validate({**sampling.model_dump(), "temperature": temperature})
            found.append(Writer(name, folder, weights, model, tokenizer, drawn))
    return found


def _weights(folder: str) -> str:
    path = manifest.existing(folder)
    return manifest.content_fingerprint(manifest.read(path)) if path is not None and (path / manifest.MANIFEST).is_file() else ""


@dataclass
class PairMaker:
    """Keeps `ahead` pairs in the store for the person who has the fewest left, until the prompts are used up."""

    store: Store
    prompts: Sequence[Sequence[Message]]
    writers: Sequence[Writer]
    ahead: int
    judges: int = 0
    problem: str = ""
    """Why it stopped before the prompts were used up."""
    finished: bool = False
    left_out: list[str] = field(default_factory=list)
    """Why a prompt got no pair."""
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin in the background."""
        self._thread = threading.Thread(target=self._work, name="pairs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the pair that is being written."""
        self._ending.set()
        with self.store.changed:
            self.store.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self.run()
        except Interrupted:
            return
        except LuyenError as error:
            self.problem = str(error)
            progress.say(f"no more pairs are written: {error}")
        except Exception as error:  # a defect must not leave people before a page that waits for ever
            self.problem = f"{type(error).__name__}: {error}"
            progress.say(f"no more pairs are written: {self.problem}")
            raise
        finally:
            self.finished = True
            if self.left_out:
                progress.say(f"{exactly(len(self.left_out), 'prompt')} got no pair; the first: {self.left_out[0]}")

    def run(self) -> None:
        """Write pair after pair; returns when the prompts are used up or `stop` was called."""
        order = list(range(len(self.prompts)))
        random.Random(derive(self.store.seed, "prompts")).shuffle(order)
        for number in order:
            with self.store.changed:
                while self.store.waiting(self.judges) >= self.ahead and not self._ending.is_set():
                    self.store.changed.wait(SECONDS_BETWEEN_LOOKS)
            if self._ending.is_set():
                return
            interrupt.check()
            self._make(self.prompts[number])

    def _make(self, prompt: Sequence[Message]) -> None:
        told_writers = [writer.told() for writer in self.writers]
        made = manifest.fingerprint([told(prompt), told_writers])
        if made in self.store.made:
            return
        draw = random.Random(derive(self.store.seed, "writers", made))
        chosen = draw.choice(list(combinations(self.writers, 2))) if len(self.writers) > 1 else (self.writers[0], self.writers[0])
        why = "two equal answers, drawn anew each time"
        for attempt in range(TRIES):
            try:
                seeds = [derive(self.store.seed, "answer", made, place, attempt) for place in (0, 1)]
                texts = [writer.write(prompt, seed) for writer, seed in zip(chosen, seeds, strict=True)]
            except LuyenError as error:
                if isinstance(error, Interrupted):
                    raise
                why = str(error)
                break
            if all(texts) and texts[0] != texts[1]:
                answers = [Answer((Message("assistant", text),), writer.told()) for text, writer in zip(texts, chosen, strict=True)]
                self.store.add([Pair.ordered(prompt, answers, made)])
                return
            why = why if all(texts) else "an empty answer, each time"
        self.left_out.append(f"{prompt[-1].content[:80]!r}: {why}")
