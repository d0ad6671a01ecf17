"""Models that learn from their own answers: generation against transformers, GRPO and RLOO against TRL's trainers, PPO beside RLOO.

    python bench/rollout.py [--size 60m] [--rounds 3] [--variants greedy,sampled,grpo,rloo] [--precision bf16]

Same weights, 2 threads. greedy, sampled (temperature 1, top-p 0.95): new tokens/s of 32 random prompts of 16 to 64 tokens, 128 new ones
each, nothing that ends an answer; the share of greedy tokens that both write is told. grpo, rloo: answers/s of steps of 8 prompts of 48
tokens, 4 answers of 64 tokens to each, drawn, scored by the share of even ids, one update of all weights from all of them, fused AdamW,
clip 1.0; GRPO without a reference, RLOO with one and beta 0.05, which are TRL's defaults; PPO as RLOO with a value for every token. TRL
generates by transformers with its cache, pads prompts on the left and answers on the right, and logs, saves and checkpoints nothing. A
step, or a call, that is not timed comes before the timed ones. In bf16 generation has bf16 weights, updates fp32 ones under autocast.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import DTYPES, VOCABULARY, Variant, base, clock, command_line, in_turn, numbers_tokenizer, running
from beside import trl_settings as settings

ROWS, NEW = 32, 128
PROMPTS, ANSWERS, LENGTH, ANSWER, BETA = 8, 4, 48, 64, 0.05
"""Of a step: prompts, answers to each, tokens of a prompt and of an answer, and RLOO's price of divergence."""


def asked() -> list[list[int]]:
    """Prompts of 16 to 64 random tokens."""
    random = np.random.default_rng(0)
    return [random.integers(3, VOCABULARY, size=length).tolist() for length in random.integers(16, 65, size=ROWS)]


def even(ids: Sequence[int]) -> float:
    """The reward: the share of even ids."""
    return sum(id_ % 2 == 0 for id_ in ids) / max(1, len(ids))


def repeated(call: Callable[[], Any]) -> Callable[[int], float]:
    """The seconds of so many calls."""

    def passes(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - started

    call()
    return passes


def luyen_generation(folder: Path, scratch: Path, kind: str, precision: str) -> Variant:
    """Ours, as a rollout asks for it."""
    from luyen.inference.config import SamplingConfig
    from luyen.inference.generate import generate
    from luyen.models import hf

    model = hf.load(folder, dtype=DTYPES[precision])
    how = {"temperature": 1.0, "top_p": 0.95} if kind == "sampled" else {}
    sampling = SamplingConfig(max_new_tokens=NEW, **how)

    def call() -> list[list[int]]:
        return [answer.ids for answer in generate(model, asked(), sampling)]

    variant = Variant(model, repeated(call))
    variant.call = call  # type: ignore[attr-defined]
    return variant


def transformers_generation(folder: Path, scratch: Path, kind: str, precision: str) -> Variant:
    """transformers' `generate`, prompts padded on the left."""
    from beside import peft_model

    model = peft_model(folder, "full", precision).eval()
    model.generation_config.eos_token_id = None
    longest = max(map(len, asked()))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked()])
    mask = (ids != 0).long()
    how = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0} if kind == "sampled" else {"do_sample": False}

    def call() -> list[list[int]]:
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, pad_token_id=0, **how)
        assert made.shape == (ROWS, longest + NEW)
        return made[:, longest:].tolist()

    variant = Variant(model, repeated(call))
    variant.call = call  # type: ignore[attr-defined]
    return variant


class Numbers:
    """Ids as words, for our rollouts; and the reward of such answers."""

    stop_ids = (2,)

    def decode(self, ids: Sequence[int]) -> str:
        """The ids with spaces between."""
        return " ".join(map(str, ids))

    def score(self, written: Sequence[Any]) -> list[float]:
        """The share of even ids of each answer."""
        return [even([int(word) for word in item.answer.split()]) for item in written]


def luyen_policy(folder: Path, scratch: Path, kind: str, precision: str) -> Variant:
    """Our loop on a policy's own answers: grpo, rloo or ppo."""
    from luyen.algorithms.grpo import GRPO
    from luyen.algorithms.policy_config import GroupLossConfig, KLConfig, PPOLossConfig, RolloutConfig
    from luyen.algorithms.ppo import PPO, ActorCritic
    from luyen.algorithms.rollout import Policy, Rollouts
    from luyen.algorithms.rollout_files import Prompt
    from luyen.core.records import Message
    from luyen.models import hf

    decoder = hf.load(folder)
    model: Any = ActorCritic(decoder) if kind == "ppo" else decoder
    reference = None if kind == "grpo" else copy.deepcopy(decoder).to(DTYPES[precision]).requires_grad_(False).eval()
    random = np.random.default_rng(0)
    prompts = [
        Prompt(f"{number}", (Message("user", f"{number}"),), tuple(random.integers(3, VOCABULARY, size=LENGTH).tolist()))
        for number in range(PROMPTS)
    ]
    config = RolloutConfig(prompts=PROMPTS, samples=ANSWERS, minibatch=PROMPTS, max_new_tokens=ANSWER)
    kl = KLConfig(beta=0.0 if kind == "grpo" else BETA)
    policy = Policy(model, decoder, Numbers(), reference, DTYPES[precision])
    rollouts = Rollouts(policy, Numbers(), prompts, config, kl, scratch / kind, 0)
    algorithm: Any = PPO(model, rollouts, PPOLossConfig(kl=kl)) if kind == "ppo" else None
    algorithm = algorithm or GRPO(decoder, rollouts, GroupLossConfig(name="grpo" if kind == "grpo" else "rloo", kl=kl), updates=1)
    return running(algorithm, scratch / kind, precision)


def trl_policy(folder: Path, scratch: Path, kind: str, precision: str) -> Variant:
    """TRL's GRPOTrainer or RLOOTrainer."""
    import trl
    from beside import peft_model
    from datasets import Dataset

    model = peft_model(folder, "full", "fp32")
    random = np.random.default_rng(0)
    ids = [random.integers(3, VOCABULARY, size=LENGTH).tolist() for _ in range(PROMPTS)]
    data = Dataset.from_list([{"prompt": " ".join(map(str, each))} for each in ids])
    config, trainer = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}[kind]

    def reward(completion_ids: list[list[int]], **more: Any) -> list[float]:
        return [even(each) for each in completion_ids]

    def passes(count: int) -> float:
        ends = clock()
        given = settings(scratch / "trl", precision, PROMPTS * ANSWERS, count + 1)
        own = config(**given, num_generations=ANSWERS, max_completion_length=ANSWER, temperature=1.0, beta=0.0 if kind == "grpo" else BETA)
        trainer(model, reward_funcs=[reward], args=own, train_dataset=data, processing_class=numbers_tokenizer(), callbacks=[ends]).train()
        return float(ends.ends[-1] - ends.ends[0])

    return Variant(model, passes)


def built(kind: str, folder: Path, scratch: Path, precision: str) -> dict[str, Variant]:
    """The variants of a comparison, ours first and TRL's or transformers' second."""
    if kind in ("greedy", "sampled"):
        makers = {f"luyen_{kind}": luyen_generation, f"transformers_{kind}": transformers_generation}
    else:
        makers = {f"luyen_{kind}": luyen_policy, f"trl_{kind}": trl_policy}
    variants = {name: make(folder, scratch, kind, precision) for name, make in makers.items()}
    return {**variants, "luyen_ppo": luyen_policy(folder, scratch, "ppo", precision)} if kind == "rloo" else variants


def compared(kind: str, folder: Path, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates and their ratio, of our variant to the peer's; for greedy also how many tokens both write alike."""
    variants = built(kind, folder, scratch, arguments.precision)
    writes = kind in ("greedy", "sampled")
    work, unit = (ROWS * NEW, "tokens") if writes else (PROMPTS * ANSWERS, "answers")
    found: dict[str, Any] = {}
    if kind == "greedy":
        ours, theirs = (variant.call() for variant in variants.values())  # type: ignore[attr-defined]
        equal = [mine == other for own, their in zip(ours, theirs, strict=True) for mine, other in zip(own, their, strict=True)]
        found["equal_tokens"] = round(sum(equal) / len(equal), 4)
    told, rates = in_turn(variants, arguments.rounds, arguments.passes, work, unit)
    if not writes:
        for figures in told.values():
            figures["seconds_per_step"] = round(work / figures["answers_per_second"], 2)
    return {**found, **told, "ratio": round(statistics.median(each[0] / each[1] for each in rates), 2)}


def main() -> None:
    """Run the variants."""
    parser = command_line(__doc__ or "", rounds=3, passes=1, what="calls of generation, or steps")
    parser.add_argument("--variants", default="greedy,sampled,grpo,rloo")
    arguments = parser.parse_args()
    if arguments.memory:
        parser.error("this benchmark measures speed alone")
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")
    given = {name: getattr(arguments, name) for name in ("size", "rounds", "passes", "precision", "variants")}
    result: dict[str, Any] = {"bench": "rollout", **given, "threads": 2}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base(arguments.size, scratch / "base", arguments.precision)
        for kind in arguments.variants.split(","):
            result[kind] = compared(kind, scratch / "base", scratch, arguments)
    print(json.dumps({**result, **{package: metadata.version(package) for package in ("torch", "transformers", "trl")}}))


if __name__ == "__main__":
    main()
