"""Answers that a policy draws to prompts, scored, measured once and gone over in micro-batches: a stream that looks at the model.

An iteration draws `samples` answers to each of the next `prompts` prompts, asks the reward for their scores, measures every token's
log-probability under the policy, and under its reference where the algorithm compares the two, lets the algorithm make advantages of
that, and yields micro-batches for as many updates as the config says. The reference is a frozen model, or the policy with its adapter off.

The state that is yielded with a batch is (iteration, position in it, and what the coming iterations are decided by). Before the first
update an iteration is whole on disk (rollout_files.py). So a run that is killed goes on to the same bits wherever that was: while answers
are drawn or scored they are drawn again from the checkpoint's weights, whose updates end where they did; between updates they are read.
An answer's draws depend on the seed, the iteration, its prompt and its number alone.

Shapes: G prompts, S answers, K tokens of all answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luyen.adapters.off import without_adapter
from luyen.adapters.preamble import preamble_of
from luyen.algorithms import rollout_files
from luyen.algorithms.policy_config import KLConfig, RolloutConfig
from luyen.algorithms.policy_watch import PolicyWatch
from luyen.algorithms.rollout_files import Drawn, PolicyBatch, Prompt, Rollout
from luyen.algorithms.sequences import token_log_probabilities
from luyen.core import distributed, interrupt, progress
from luyen.core.errors import DataError, LuyenError
from luyen.core.seed import derive
from luyen.data.shuffle import permutation
from luyen.engine.precision import autocast
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models.transformer import Transformer
from luyen.objectives.policy import adapted_coefficient
from luyen.tasks.reward import Reward, Written, checked


class Speaker(Protocol):
    """What is asked of a tokenizer."""

    @property
    def stop_ids(self) -> Collection[int]:
        """Ids that end an answer."""

    def decode(self, ids: Sequence[int]) -> str:
        """Their text."""


@dataclass
class Policy:
    """Who answers and learns."""

    model: nn.Module
    """All that is trained."""
    decoder: Transformer
    """What of it writes."""
    speaker: Speaker
    reference: Transformer | None = None
    """The frozen model that it may not go far from; None: itself with its adapter off."""
    dtype: torch.dtype = torch.float32
    """Of the matrix products in training."""

    @property
    def device(self) -> torch.device:
        """Where it is now."""
        return self.decoder.head_weight.device

    def reference_log_probabilities(self, batch: PolicyBatch, temperature: float) -> Tensor:
        """Of every token under the reference, (K,)."""
        if self.reference is not None:
            return token_log_probabilities(self.reference.to(self.device), batch, temperature)
        with without_adapter(self.decoder):
            return token_log_probabilities(self.decoder, batch, temperature)


class Learner(Protocol):
    """What an algorithm makes of a rollout."""

    by_tokens: bool
    """Whether its loss counts tokens, or answers."""
    compares: bool
    """Whether it needs the reference's log-probabilities, as the column reference_K."""

    def measure(self, batch: PolicyBatch) -> Mapping[str, Tensor]:
        """Columns that are measured once, before the first update."""

    def learn(self, rollout: Rollout, beta: float) -> Rollout:
        """The rollout with all that the loss needs, and with its figures for the log (`kl`, nats an answer, where beta adapts)."""


class Rollouts:
    """The stream of micro-batches."""

    def __init__(
        self, policy: Policy, reward: Reward, prompts: Sequence[Prompt], config: RolloutConfig, kl: KLConfig, folder: Path, seed: int
    ) -> None:
        """`folder` is the one that the run's checkpoints lie in. Raises DataError when there are no prompts."""
        if not prompts:
            raise DataError("there is nothing to answer: no prompts", fix="Look at what was dropped and why.")
        self.policy, self.reward, self.prompts, self.config, self.kl, self.seed = policy, reward, prompts, config, kl, seed
        self.root, self.checkpoints = folder / "rollouts", folder / "checkpoints"
        self.watch = PolicyWatch(kl)
        self.fingerprint = _fingerprint(prompts, config, kl, seed)
        self._state: dict[str, Any] = {}
        self._moved = (0.0, 0.0)
        self._entropy: list[tuple[Tensor, int]] = []
        self._away: list[tuple[Tensor, int]] = []

    def batches(self, state: dict[str, Any] | None, learner: Learner) -> Iterator[tuple[PolicyBatch, dict[str, Any]]]:
        """Micro-batches for ever; `batches(state)` continues right after the one that was yielded with `state`.

        What `moved` says of the updates is written into the state that was yielded last, so that a checkpoint holds it. Raises DataError
        for a state of other prompts or settings, or a reward that is no finite number; DamagedFile where a rollout is gone.
        """
        now = self._entered(state)
        while True:
            order = self._order(now["iteration"])
            if now["position"] < len(order) and not now["ended"]:
                rollout = self._read(now["iteration"]) if now["position"] else self._made(now["iteration"], now["beta"], learner)
                now = {**now, "kl": rollout.figures.get("kl", 0.0), "figures": dict(rollout.figures)}
            while now["position"] < len(order) and not now["ended"]:
                groups = order[now["position"]]
                self._state, self._moved = now, (0.0, 0.0)
                now = self._state = {**now, "position": now["position"] + 1}
                yield rollout.batch(groups, self._shares, learner.by_tokens), now
            now = self._next(now)

    def moved(self, divergence: Tensor, entropy: Tensor, count: int, reference: tuple[Tensor, int] | None = None) -> None:
        """Told by a loss, of so many tokens, the sums of their divergence from the policy that drew them and of their entropy.

        Where the divergence is too much on average the updates of this rollout end; processes decide that together. `reference`: the
        sum of the divergence from the reference and its answers, where it was not measured before.
        """
        self._entropy.append((entropy, count))
        self._away += [] if reference is None else [reference]
        if self.kl.stop is None:
            return
        parts = distributed.gather([float(divergence), count])
        self._moved = (self._moved[0] + sum(part[0] for part in parts), self._moved[1] + sum(part[1] for part in parts))
        self._state["ended"] = self._moved[0] > self.kl.stop * self._moved[1]

    def _entered(self, state: dict[str, Any] | None) -> dict[str, Any]:
        if distributed.is_main():
            rollout_files.discard_after(self.root, -1 if state is None else int(state["iteration"]))
        if state is None:
            return {"iteration": 0, "position": 0, "ended": False, "beta": self.kl.beta, "kl": 0.0, "figures": {}, "first": {},
                    "data": self.fingerprint}  # fmt: skip
        if state["data"] != self.fingerprint:
            raise DataError("cannot continue: the prompts, the rollout's settings or the seed changed since the checkpoint",
                            fix="Put back the same ones, or start anew in another folder.")  # fmt: skip
        return dict(state)

    def _next(self, now: dict[str, Any]) -> dict[str, Any]:
        """The state in which the next iteration begins; what is alarming in the one that ended is said."""
        figures = dict(now["figures"])
        for name, told in (("entropy", self._entropy), ("kl", self._away)):
            if told:
                figures[name] = float(sum(total for total, _ in told)) / sum(count for _, count in told)
                told.clear()
        first = now["first"] or figures
        for line in self.watch.judge(now["iteration"], figures, first) if distributed.is_main() else ():
            progress.say(line)
        beta = now["beta"]
        if self.kl.target is not None:
            answers = self.config.prompts * self.config.samples
            beta = adapted_coefficient(beta, now["kl"], self.kl.target, answers, self.kl.horizon)
        return {**now, "iteration": now["iteration"] + 1, "position": 0, "ended": False, "beta": beta, "first": first}

    @property
    def _shares(self) -> bool:
        return not preamble_of(self.policy.decoder)

    def _chosen(self, iteration: int) -> tuple[Prompt, ...]:
        """The prompts of an iteration: the next ones of an endless sequence of random orders of all."""
        found, count = [], len(self.prompts)
        for number in range(iteration * self.config.prompts, (iteration + 1) * self.config.prompts):
            order = permutation(count, self.seed, "prompts", number // count)
            found.append(self.prompts[int(order[number % count])])
        return tuple(found)

    def _order(self, iteration: int) -> list[list[int]]:
        """Which prompts each micro-batch of an iteration has."""
        size, order = self.config.minibatch, []
        for epoch in range(self.config.epochs):
            mixed = permutation(self.config.prompts, self.seed, "minibatches", iteration, epoch).tolist()
            order += [mixed[start : start + size] for start in range(0, len(mixed), size)]
        return order

    def _made(self, iteration: int, beta: float, learner: Learner) -> Rollout:
        """A new rollout, written before it is learned from."""
        held = interrupt.held() if distributed.ranks() > 1 else contextlib.nullcontext()
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            with held:
                prompts = self._chosen(iteration)
                rollout = Rollout(iteration, prompts, self._scored(prompts, self._answers(prompts, iteration)))
                rollout = replace(rollout, columns=self._measured(rollout, learner), figures=_figures(rollout) | {"beta": beta})
                rollout = learner.learn(rollout, beta)
                rollout = replace(rollout, figures=dict(sorted(rollout.figures.items())))  # in the order in which they are read back
        finally:
            self.policy.model.train(training)
        if distributed.is_main():
            rollout_files.write(rollout, self.root)
            rollout_files.discard_unneeded(self.root, self.checkpoints, iteration)
        return rollout

    def _answers(self, prompts: Sequence[Prompt], iteration: int) -> list[Drawn]:
        """`samples` answers to each prompt; of several processes each writes those to its share of them."""
        config, ranks, speaker = self.config, distributed.ranks(), self.policy.speaker
        sampling = SamplingConfig(
            temperature=config.temperature, max_new_tokens=config.max_new_tokens, seed=derive(self.seed, "rollout", iteration)
        )
        numbers: dict[tuple[int, ...], int] = {}
        owners = [
            numbers.setdefault(prompt.ids, len(numbers)) % ranks for prompt in prompts
        ]  # equal prompts have one writer: it counts them
        own = [list(prompt.ids) for prompt, owner in zip(prompts, owners, strict=True) if owner == distributed.rank()]
        asked = [ids for ids in own for _ in range(config.samples)]
        made = generate(self.policy.decoder, asked, sampling, speaker.stop_ids, config.batch_size) if asked else []
        shares = [iter(share) for share in distributed.gather([[answer.ids, answer.end] for answer in made])]
        found = []
        for owner in owners:
            for ids, end in itertools.islice(shares[owner], config.samples):
                found.append(Drawn((*ids, *([] if end is None else [end])), speaker.decode(ids).strip(), end is not None))
        return found

    def _scored(self, prompts: Sequence[Prompt], answers: Sequence[Drawn]) -> tuple[Drawn, ...]:
        """The answers with their scores. The main process asks for them; an error of it is one of all."""
        written = [
            Written(prompt.id, prompt.messages, answer.text, answer.stopped, prompt.example)
            for prompt, answer in zip((prompt for prompt in prompts for _ in range(self.config.samples)), answers, strict=True)
        ]
        told: dict[str, Any] = {}
        try:
            if distributed.is_main():
                told["scores"] = checked(self.reward, written)
        except LuyenError as error:
            distributed.told_by_main({"error": str(error)})
            raise
        told = distributed.told_by_main(told)
        if "error" in told:
            raise DataError(told["error"])
        return tuple(replace(answer, score=float(score)) for answer, score in zip(answers, told["scores"], strict=True))

    @torch.no_grad()
    def _measured(self, rollout: Rollout, learner: Learner) -> dict[str, Tensor]:
        """What the learner asks for of every token, in the very micro-batches of the first updates; processes share them out."""
        columns: dict[str, Tensor] = {}
        count, device = sum(rollout.lengths), self.policy.device
        order = self._order(rollout.iteration)[: -(-self.config.prompts // self.config.minibatch)]
        ranks, rank = distributed.ranks(), distributed.rank()
        rounds = range(rank, max(len(order), ranks), ranks)  # every process measures something, so all know the columns' names
        for groups in (order[number % len(order)] for number in rounds):
            batch = rollout.batch(groups, self._shares).to(device)
            assert isinstance(batch, PolicyBatch)
            with autocast(device, self.policy.dtype):
                with torch.enable_grad():  # the pass of the first update to the bit: without gradients attention goes another way
                    found = {name: column_K.detach() for name, column_K in learner.measure(batch).items()}
                if learner.compares:
                    found["reference_K"] = self.policy.reference_log_probabilities(batch, self.config.temperature)
            places_K = rollout.tokens_of(groups)
            for name, column_K in found.items():
                columns.setdefault(name, torch.zeros(count, dtype=column_K.dtype))[places_K] = column_K.cpu()
        if ranks > 1:
            self._joined(columns, rollout, order)
        return columns

    def _joined(self, columns: dict[str, Tensor], rollout: Rollout, order: Sequence[Sequence[int]]) -> None:
        """Every process' own micro-batches in all of them; the rest of each is zero."""
        rank, ranks = distributed.rank(), distributed.ranks()
        for column_K in (columns[name] for name in sorted(columns)):
            for number, groups in enumerate(order):
                if number % ranks != rank:
                    column_K[rollout.tokens_of(groups)] = 0
            dist.all_reduce(column_K)

    def _read(self, iteration: int) -> Rollout:
        """The rollout of an iteration that is under way."""
        main = distributed.is_main()
        rows, columns, figures = rollout_files.read(self.root, iteration) if main else ([], {}, {})
        told = distributed.told_by_main({"rows": rows, "figures": figures})
        columns = dict(distributed.from_main(columns if main else None))
        return Rollout(iteration, self._chosen(iteration), rollout_files.drawn(told["rows"]), columns, told["figures"])


def _figures(rollout: Rollout) -> dict[str, float]:
    """What is told of the answers themselves."""
    lengths, scores_S = rollout.lengths, rollout.scores_S
    return {
        "reward": float(scores_S.mean()), "reward_std": float(scores_S.std(correction=0)),
        "reward_spread": float(scores_S.view(len(rollout.prompts), -1).std(1, correction=0).mean()),
        "length": sum(lengths) / len(lengths), "stopped": math.fsum(answer.stopped for answer in rollout.answers) / len(lengths),
    }  # fmt: skip


def _fingerprint(prompts: Sequence[Prompt], config: RolloutConfig, kl: KLConfig, seed: int) -> str:
    """A short hash of everything that decides the stream besides the weights, so that a state cannot be used with other data."""
    settings = f"{config.model_dump(exclude={'batch_size'})} {kl.beta} {kl.target} {kl.horizon} {kl.stop} {seed}"
    digest = hashlib.blake2b(settings.encode(), digest_size=12)
    for prompt in prompts:
        digest.update(f"\n{prompt.id} {prompt.ids} {prompt.example.answer if prompt.example else ''}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
