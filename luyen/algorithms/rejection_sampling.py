"""Rejection sampling: of K answers to each prompt the best is learned (Llama 2, Touvron et al., 2023, arXiv:2307.09288, section 3.2.3).

    best(p) = argmax of R(a | p)  over  a in {a_1, ..., a_K} drawn from the model at temperature T, and the best of all earlier rounds

and then supervised fine-tuning on (p, best(p)), see sft.py. The paper's third version learned from answers of the second alone and forgot
what earlier ones could; so the best of earlier rounds stay, scored anew by the reward of this one. T decides how different the answers
are: of several the one is taken whose mean maximum is highest.

An answer that did not end by itself, or is empty, is no candidate: what is learned from it would be to break off.

Answers are drawn and scored in parts, each on disk before the next: a run that is stopped reads them back, since the model that draws does
not change in the meantime. A draw depends on the seed, the temperature, the prompt and its number alone.

Shapes: P prompts, K answers to each.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luyen.algorithms.rejection_config import DrawConfig
from luyen.algorithms.rollout import Speaker
from luyen.algorithms.rollout_files import Prompt
from luyen.core import distributed, interrupt, manifest, progress
from luyen.core.errors import DamagedFile, DataError, LuyenError
from luyen.core.files import read_jsonl, replace_jsonl
from luyen.core.records import Message, Preference
from luyen.core.seed import derive
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models.transformer import Transformer
from luyen.tasks.reward import Reward, Written, checked


@dataclass(frozen=True)
class Drawn:
    """An answer and what it is worth."""

    text: str
    stopped: bool
    """Whether it ended by itself."""
    reward: float

    @property
    def usable(self) -> bool:
        """Whether it may be learned."""
        return self.stopped and bool(self.text)


@dataclass(frozen=True)
class Best:
    """The answer to a prompt that is learned."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    reward: float
    source: str = ""
    """The earlier round that it comes from; "" for this one."""

    def row(self) -> dict[str, Any]:
        """As a row of best.jsonl, which fine-tuning reads as a conversation."""
        turns = [{"role": turn.role, "content": turn.content} for turn in (*self.messages, Message("assistant", self.answer))]
        return {"id": self.id, "messages": turns, "reward": self.reward, "source": self.source}


class Sampler:
    """Draws answers of one model, which nothing changes meanwhile, and scores them."""

    def __init__(
        self, decoder: Transformer, speaker: Speaker, reward: Reward, samples: int, config: DrawConfig, folder: Path, seed: int
    ) -> None:
        """`folder` keeps the parts."""
        self.decoder, self.speaker, self.reward, self.samples = decoder, speaker, reward, samples
        self.config, self.folder, self.seed = config, folder, seed

    def draw(self, prompts: Sequence[Prompt]) -> tuple[float, dict[float, float], list[tuple[Drawn, ...]]]:
        """The temperature that was taken, the mean maximum at each on the first prompts, and K answers to every prompt.

        DataError for a reward that is no finite number.
        """
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(parents=True)
        first = prompts[: self.config.search] if len(self.config.temperatures) > 1 else ()
        tried = {temperature: self._all(f"search-{place}", first, temperature) for place, temperature in self._numbered(first)}
        found = {temperature: statistics.fmean(max(each.reward for each in row) for row in rows) for temperature, rows in tried.items()}
        chosen = max(found, key=lambda temperature: found[temperature]) if found else self.config.temperatures[0]
        return chosen, found, [*tried.get(chosen, ()), *self._all("drawn", prompts[len(first) :], chosen)]

    def _numbered(self, first: Sequence[Prompt]) -> list[tuple[int, float]]:
        return list(enumerate(self.config.temperatures)) if first else []

    def _all(self, name: str, prompts: Sequence[Prompt], temperature: float) -> list[tuple[Drawn, ...]]:
        found: list[tuple[Drawn, ...]] = []
        with progress.task(f"answers at temperature {temperature:g}", len(prompts), "prompts") as bar:
            for number, start in enumerate(range(0, len(prompts), self.config.part)):
                interrupt.check()
                part = prompts[start : start + self.config.part]
                found += self._part(self.folder / f"{name}-{number:06d}.jsonl", part, temperature)
                bar.advance(len(part))
        return found

    def _part(self, path: Path, prompts: Sequence[Prompt], temperature: float) -> list[tuple[Drawn, ...]]:
        """The answers to some prompts, from the disk where they are there already."""
        key = manifest.fingerprint([self.samples, self.config.model_dump(exclude={"temperatures", "search", "batch_size"}), self.seed,
                                    temperature, [[prompt.id, prompt.ids] for prompt in prompts]])  # fmt: skip
        rows = distributed.told_by_main(_kept(path, key) if distributed.is_main() else None)
        if rows is None:
            held = interrupt.held() if distributed.ranks() > 1 else contextlib.nullcontext()
            with held:
                rows = self._scored(prompts, self._answers(prompts, temperature))
            if distributed.is_main():
                replace_jsonl(path, [{"key": key}, *rows])
        answers = [Drawn(*row) for row in rows]
        return [tuple(answers[start : start + self.samples]) for start in range(0, len(answers), self.samples)]

    def _answers(self, prompts: Sequence[Prompt], temperature: float) -> list[tuple[str, bool]]:
        """K answers to each prompt, in order; of several processes each writes those to its share of them."""
        config, rank, ranks = self.config, distributed.rank(), distributed.ranks()
        sampling = SamplingConfig(temperature=temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens,
                                  seed=derive(self.seed, "answers", temperature))  # fmt: skip
        asked = [list(prompt.ids) for prompt in prompts[rank::ranks] for _ in range(self.samples)]
        made = generate(self.decoder, asked, sampling, self.speaker.stop_ids, config.batch_size) if asked else []
        shares = distributed.gather([[self.speaker.decode(answer.ids).strip(), answer.stopped] for answer in made])
        found = []
        for place in range(len(prompts)):
            begin = place // ranks * self.samples
            found += [(text, stopped) for text, stopped in shares[place % ranks][begin : begin + self.samples]]
        return found

    def _scored(self, prompts: Sequence[Prompt], answers: Sequence[tuple[str, bool]]) -> list[list[Any]]:
        asked = [prompt for prompt in prompts for _ in range(self.samples)]
        written = [
            Written(prompt.id, prompt.messages, text, stopped, prompt.example)
            for prompt, (text, stopped) in zip(asked, answers, strict=True)
        ]
        rewards = asked_by_main(self.reward, written)
        return [[text, stopped, reward] for (text, stopped), reward in zip(answers, rewards, strict=True)]


def asked_by_main(reward: Reward, written: Sequence[Written]) -> list[float]:
    """Checked rewards in every process. The main one alone asks; an error of it is one of all."""
    told: dict[str, Any] = {}
    try:
        if distributed.is_main():
            told["scores"] = checked(reward, written)
    except LuyenError as error:
        distributed.told_by_main({"error": str(error)})
        raise
    told = distributed.told_by_main(told)
    if "error" in told:
        raise DataError(told["error"])
    return [float(score) for score in told["scores"]]


def choose(
    prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]], earlier: Mapping[str, Iterable[Best]], reward: Reward
) -> list[Best]:
    """The best answer to each prompt, of those drawn and of earlier rounds' (round -> its best), scored anew; then those to prompts that
    are asked no more, each of the last round that has it. Prompts to which no answer ended by itself are left out.

    Of equal ones the first that was drawn is taken, before those of earlier rounds.
    """
    asked = {prompt.messages: prompt for prompt in prompts}
    others = {name: list(found) for name, found in earlier.items()}
    again = [(name, best) for name, found in others.items() for best in found if best.messages in asked]
    written = [
        Written((own := asked[best.messages]).id, own.messages, best.answer, example=own.example) for _, best in again
    ]  # fmt: skip
    rewards = asked_by_main(reward, written) if written else []
    candidates: dict[tuple[Message, ...], list[Best]] = {}
    for prompt, row in zip(prompts, drawn, strict=True):
        candidates[prompt.messages] = [Best(prompt.id, prompt.messages, item.text, item.reward) for item in row if item.usable]
    for (name, best), score in zip(again, rewards, strict=True):
        candidates[best.messages].append(replace(best, id=asked[best.messages].id, reward=score, source=best.source or name))
    found = [max(row, key=lambda best: best.reward) for row in candidates.values() if row]
    rest = {best.messages: replace(best, source=best.source or name) for name, round_ in others.items() for best in round_
            if best.messages not in asked}  # fmt: skip
    return [*found, *rest.values()]


def pairs(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]) -> list[Preference]:
    """The best answer of this round beside the worst, of those that ended by themselves; none where all are worth the same."""
    found = []
    for prompt, row in zip(prompts, drawn, strict=True):
        usable = sorted((item for item in row if item.usable), key=lambda item: item.reward)
        if usable and usable[0].reward < usable[-1].reward:
            chosen, rejected = ((Message("assistant", item.text),) for item in (usable[-1], usable[0]))
            found.append(Preference(prompt.messages, chosen, rejected))
    return found


def _kept(path: Path, key: str) -> list[list[Any]] | None:
    """The rows of a part that an earlier attempt left, None where there is none of this key."""
    try:
        first, *rows = read_jsonl(path)
    except FileNotFoundError:
        return None
    except (DamagedFile, ValueError):
        progress.say(f"  {path.name} is damaged; its answers are drawn again")
        return None
    return rows if isinstance(first, dict) and first.get("key") == key else None
