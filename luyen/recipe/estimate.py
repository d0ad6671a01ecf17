"""What a run will take, said before it starts: time and memory of every stage on this machine, or why they are not known before.

Training and evaluation are counted in operations and bytes (engine/estimate.py). Other stages are counted in bytes of text at rates
measured once and scaled by a small probe of this machine. Amounts come from finished stages and files where there are any, else from
the config and from what the quickstart's pages held. All rates: one core of an AMD EPYC (Milan), Python 3.11.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from luyen.adapters import files
from luyen.adapters.count import own_weights, trained_weights
from luyen.core import distributed
from luyen.core.device import pick_device, pick_dtype
from luyen.core.files import read_jsonl
from luyen.core.folders import model_in
from luyen.core.manifest import existing, read
from luyen.corpus.crawl import CrawlConfig
from luyen.engine.config import TrainConfig
from luyen.engine.cost import AdapterCost, logits_bytes
from luyen.engine.estimate import (
    FIRST_STEP_BYTES,
    FORWARD,
    LIBRARIES_BYTES,
    Estimate,
    Speed,
    Work,
    estimate_training,
    evaluations,
    measure_speed,
    token_work,
    writing_work,
)  # fmt: skip
from luyen.engine.pace import measure_pace
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.models.presets import PUBLISHED, count_parameters, preset
from luyen.recipe.configs import (
    CurateVerbConfig,
    EvaluateConfig,
    PretrainConfig,
    SFTConfig,
    SynthVerbConfig,
    TokenizerVerbConfig,
    TuningConfig,
)  # fmt: skip
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.sizes import HELD_OUT_BYTES, SAMPLE_TOKENS, model_config, row_length, with_rows
from luyen.tokenizer.folder import locate
from luyen.tokenizer.load import Tokenizer

PROBE_SECONDS = 0.0053
"""Time of `_probe` on the machine that the rates below were measured on."""
CURATE_START, CURATE_RATE = 1.0, 3.1e6
"""Seconds until the language model is loaded; bytes of HTML a second through all steps (bench/curation.py: 21 ms for pages of 67 kB)."""
TOKENIZER_RATE, SYNTH_RATE = 1.4e6, 0.45e6
"""Bytes of text a second (quickstart)."""
NGRAM_RATE, NGRAM_BYTES, NGRAM_TOKENS = 160_000, 720.0, 400_000
"""Tokens a second that the n-gram baseline counts (quickstart), what it holds for each, and the most it counts."""
PYDOC_START, PYDOC_RATE, PYDOC_PAGES = 0.1, 70.0, 200
"""Seconds until the documentation server answers, pages a second from it, and pages of the whole standard library (quickstart)."""
PYDOC_PAGE_BYTES, WEB_PAGE_BYTES = 33_000, 67_000
"""Mean page of the quickstart, and of bench/curation.py."""
TEXT_SHARE = 0.37
"""Bytes of clean text for each byte of HTML (quickstart)."""
BYTES_PER_TOKEN = 3.4
"""Of the quickstart's tokenizer on held-out text."""
QUESTIONS_PER_BYTE = 1080 / 175_000
"""Test questions for each byte of text that the built-in template finds (quickstart); at most `examples` of each of its four sets."""
ANSWER_SHARE = 0.33
"""Share of a conversation's tokens that are answers and so have a target (quickstart)."""
FROZEN_BYTES = {"none": 4.0, "nf4": 0.5 + 8.25 / 512, "fp4": 0.5 + 8.25 / 512, "int8": 1.0 + 4 / 512}
"""Of each frozen weight with its share of the scales: blocks of 64 whose scales take 8 bits and a share of one in 256 of 32 (QLoRA,
arXiv:2305.14314, section 3)."""
CURATION_BYTES = 180_000_000
"""What curation's language model and filters add to a process, also for the stages after it."""
TRAINING_BYTES = 45_000_000
"""What a training stage adds to a process beside torch's kernels, also for the stages after it: the loop's libraries, what reads rows,
evaluations and answers on the way (42 to 57 MB with and without curation before it: what the quickstart's process held, resident, before
and after its training stages of 16 steps)."""


@dataclass(frozen=True)
class Prediction:
    """What a whole stage is expected to take; without seconds `told` says why that is not known before."""

    seconds: float | None
    bytes: int | None
    """Peak memory of the process."""
    told: str
    """What was counted."""
    left: float = 1.0
    """Share of it that is still to do, where an unfinished attempt goes on."""
    here: int = 1
    """Processes on this machine that take so much of its memory each."""

    def as_dict(self) -> dict[str, Any]:
        """For the stage's manifest."""
        return {"seconds": None if self.seconds is None else round(self.seconds, 3), "bytes": self.bytes, "counted": self.told}


def training_rate(train: TrainConfig, estimate: Estimate) -> Speed:
    """What the device does in a second in the type and with the threads that `train` will use, at the pace of its model; measured now."""
    device = pick_device(train.device)
    dtype = pick_dtype(train.precision, device)
    speed = measure_speed(device, dtype)
    return replace(speed, pace=measure_pace(estimate, speed, device, dtype))


def of_stage(config: PretrainConfig | SFTConfig, model: TransformerConfig, train: TrainConfig | None = None) -> Estimate:
    """The estimate of a training stage without its evaluations; `train` in place of its own section."""
    length = row_length(config.batch, model.context_length - config.adapter.preamble)
    loop = train or config.train
    half = pick_dtype(loop.precision, pick_device(loop.device)) != torch.float32
    return estimate_training(model, loop, config.batch.rows, length, targets_share(config), adapter_cost(config, model, half))


def targets_share(config: PretrainConfig | SFTConfig) -> float:
    """Share of the tokens that have a target."""
    return ANSWER_SHARE if isinstance(config, SFTConfig) else 1.0


def adapter_cost(config: TuningConfig, model: TransformerConfig, half: bool) -> AdapterCost | None:
    """What is trained in place of the model's weights; None where they are. What is frozen is held in the type of the products."""
    if config.adapter.method == "full":
        return None
    held = 2.0 if half and config.adapter.freezes_base else 4.0
    frozen = held if config.quantize == "none" else FROZEN_BYTES[config.quantize]
    tokens = len(config.tokens)
    return AdapterCost(trained_weights(model, config.adapter, tokens), frozen, own_weights(model, config.adapter, tokens))


def counts_gpu(train: TrainConfig) -> bool:
    """Whether the memory that training is measured by is a GPU's, which holds no libraries, instead of the process'."""
    return pick_device(train.device).type == "cuda"


def process_bytes(train: TrainConfig, estimate: Estimate, kept: int = FIRST_STEP_BYTES + TRAINING_BYTES) -> int:
    """Peak memory of a process that trains so, or of its GPU; `kept` is what it holds on a CPU beside libraries and training's tensors."""
    return estimate.bytes + (0 if counts_gpu(train) else LIBRARIES_BYTES + kept)


def predict(
    plan: Plan, done: Mapping[str, Path] | None = None, steps: Mapping[str, int] | None = None, vocabulary: int = 0
) -> dict[str, Prediction]:
    """A prediction for every stage that is still to do.

    `done` are the folders of stages that are up to date, `steps` what unfinished ones that go on have behind them, `vocabulary` the
    tokens of a tokenizer that is not here.
    """
    outlook = Outlook({stage.name: stage for stage in plan.stages}, done or {}, vocabulary)
    found: dict[str, Prediction] = {}
    if any(isinstance(stage.config, PretrainConfig | SFTConfig) for stage in plan.stages if stage.name not in outlook.done):
        outlook.kept["kernels"] = FIRST_STEP_BYTES  # this prediction tries a step itself
    for stage in plan.stages:
        if stage.name not in outlook.done:
            if isinstance(stage.config, CurateVerbConfig):
                outlook.kept["curation"] = CURATION_BYTES
            if isinstance(stage.config, EvaluateConfig):
                outlook.kept["kernels"] = FIRST_STEP_BYTES
            if isinstance(stage.config, PretrainConfig | SFTConfig):
                outlook.kept["training"] = TRAINING_BYTES
            found[stage.name] = outlook.of(stage)
            behind = (steps or {}).get(stage.name, 0)
            if behind and isinstance(stage.config, PretrainConfig | SFTConfig):
                found[stage.name] = _continued(found[stage.name], behind, stage.config.train.steps)
    return found


def lines(predictions: Mapping[str, Prediction], done: tuple[str, ...] = ()) -> list[str]:
    """Predictions in words: one line a stage, then several together with what that leaves out; empty when everything is up to date."""
    if not predictions:
        return []
    told = ["estimate for this machine, before anything is done:"]
    for name, item in predictions.items():
        taken = "not known before" if item.seconds is None else f"about {_duration(item.seconds * item.left)}"
        memory = f", {item.bytes / 1e9:.1f} GB" if item.bytes is not None and item.seconds is not None else ""
        told.append(f"  {name}: {taken}{memory} ({item.told})")
    if len(predictions) == 1 and not done:
        return told
    known = [item for item in predictions.values() if item.seconds is not None]
    unknown = [name for name, item in predictions.items() if item.seconds is None]
    seconds = sum((item.seconds or 0.0) * item.left for item in known)
    total = f"  together: about {_duration(seconds)}" if known else "  together: not known before"
    if known:
        total += f", at most {max(item.bytes or 0 for item in known) / 1e9:.1f} GB at a time"
    if unknown and known:
        total += f", without {', '.join(unknown)}"
    return [*told, total + (f"; up to date and not counted: {', '.join(done)}" if done else "")]


def _continued(whole: Prediction, behind: int, steps: int) -> Prediction:
    told = f"{whole.told}; continues after step {behind:,} of {steps:,}"
    return replace(whole, told=told, left=1 - min(behind / steps, 1.0))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass
class Outlook:
    """What is known of a plan before it runs."""

    stages: Mapping[str, StagePlan]
    done: Mapping[str, Path]
    vocabulary: int = 0
    """Tokens of a tokenizer that is not here; 0: not known."""
    kept: dict[str, int] = field(default_factory=dict)
    """Bytes that stay in the process from the first stage on that uses curation's libraries, torch's kernels or the training loop."""

    def of(self, stage: StagePlan) -> Prediction:
        """The prediction for one stage."""
        match stage.config:
            case CrawlConfig() as config:
                return self._crawl(config)
            case CurateVerbConfig() as config:
                start, rate = CURATE_START * pace(), CURATE_RATE * config.processes
                return self._reading(config.source, rate, start)
            case TokenizerVerbConfig() as config:
                return self._reading(config.data, TOKENIZER_RATE)
            case SynthVerbConfig() as config:
                return self._reading(config.source, SYNTH_RATE)
            case PretrainConfig() | SFTConfig() as config:
                return self._training(config)
            case EvaluateConfig() as config:
                return self._evaluate(config)
        return Prediction(None, None, f"no rate was measured for {stage.verb}")

    def _memory(self) -> int:
        return LIBRARIES_BYTES + sum(self.kept.values())

    def _crawl(self, config: CrawlConfig) -> Prediction:
        pages = _pages(config)
        if config.start == "pydoc":
            return Prediction(
                (PYDOC_START + pages / PYDOC_RATE) * pace(), self._memory(), f"{pages:,} pages of this Python's documentation"
            )
        hosts = 1 if isinstance(config.start, str) else len({re.sub(r"^\w+://|/.*", "", url) for url in config.start})
        seconds = pages * config.delay_seconds / min(hosts, config.hosts_at_once)
        told = (
            f"at most {pages:,} pages, only the pauses of {config.delay_seconds:g} s between requests; the servers' own time is not known"
        )
        return Prediction(seconds, self._memory(), told)

    def _reading(self, source: str, rate: float, start: float = 0.0) -> Prediction:
        """A stage whose time goes with the bytes that it reads."""
        size = self.text(source)
        if size is None:
            return Prediction(None, None, f"how much {source} holds is not known")
        return Prediction(start + size / rate * pace(), self._memory(), f"{size / 1e6:.1f} MB to read")

    def text(self, source: str) -> float | None:
        """Bytes in a source: counted where it exists, else expected."""
        if source in self.done:
            metrics = read(self.done[source]).get("metrics")
            found = metrics if isinstance(metrics, dict) else {}
            sizes = [side.get("bytes") for side in (found, found.get("train"), found.get("heldout")) if isinstance(side, dict)]
            return float(sum(size for size in sizes if isinstance(size, int))) or None
        if source in self.stages:
            config = self.stages[source].config
            if isinstance(config, CrawlConfig):
                return float(_pages(config)) * (PYDOC_PAGE_BYTES if config.start == "pydoc" else WEB_PAGE_BYTES)
            if isinstance(config, CurateVerbConfig):
                size = self.text(config.source)
                crawled = config.source in self.stages
                return size and size * (TEXT_SHARE if crawled else 1.0)
            return None
        path = existing(source) or Path(source)
        files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else []
        return float(sum(item.stat().st_size for item in files)) or None

    def held_out_tokens(self, source: str | None, limit: int | None = None) -> float:
        """Held-out tokens of a corpus: its fraction of the text, at most `limit` bytes; `limit` alone where nothing is known."""
        if source is None:
            return 0.0
        config = self.stages[source].config if source in self.stages else None
        share = config.heldout_fraction if isinstance(config, CurateVerbConfig) else 0.05
        size = self.text(source)
        found = share * size if size is not None else float(limit or 0)
        return (min(found, limit) if limit is not None else found) / BYTES_PER_TOKEN

    def _training(self, config: PretrainConfig | SFTConfig) -> Prediction:
        model = self.tuned(config)
        if model is None:
            return Prediction(None, None, "the model's size is not known here")
        estimate = of_stage(config, model)
        held_out = self.held_out_tokens(config.heldout if isinstance(config, SFTConfig) else config.data, HELD_OUT_BYTES)
        length = row_length(config.batch, model.context_length - config.adapter.preamble)
        once = token_work(model, length) * (FORWARD * held_out) + writing_work(model, SAMPLE_TOKENS * len(config.prompts))
        work = estimate.own + once * evaluations(config.train)  # every process evaluates
        told = f"{estimate.parameters / 1e6:.1f} million parameters, at most {estimate.tokens:,} tokens"
        told += f"; {estimate.told}" if estimate.told else ""
        memory = process_bytes(config.train, estimate, sum(self.kept.values()))
        launched = distributed.launch()
        here = 1 if counts_gpu(config.train) else launched["processes"] // launched["machines"]
        return Prediction(work.seconds(training_rate(config.train, estimate)), memory, told, here=here)

    def _evaluate(self, config: EvaluateConfig) -> Prediction:
        models = [self.model(name) for name in config.models.values()]
        known = [model for model in models if model is not None]
        if len(known) < len(models) or not known:
            return Prediction(None, None, "the size of a model is not known here")
        questions = self._questions(config)
        if questions is None:
            return Prediction(None, None, "how many questions there will be is not known")
        work = Work()
        answers = questions * config.sampling.max_new_tokens
        for model in [*known, known[-1]] if questions else known:  # the last model is asked again, with the pages
            work = work + writing_work(model, answers)
        for model in known:
            work = work + token_work(model, model.context_length) * (FORWARD * self.held_out_tokens(config.heldout))
        counted = min(NGRAM_TOKENS, (self.text(config.heldout) or 0.0) / BYTES_PER_TOKEN + 200_000) if config.heldout else 0.0
        device = pick_device(config.device)
        speed = measure_speed(device, pick_dtype(config.precision, device))
        asked = f"{questions:,} questions to {len(known) + 1} models, answers of at most {config.sampling.max_new_tokens} tokens"
        logits = max(logits_bytes(model, self.held_out_tokens(config.heldout)) for model in known)
        memory = self._memory() + 4 * sum(map(count_parameters, known)) + int(NGRAM_BYTES * counted + logits)
        return Prediction(work.seconds(speed) + counted / NGRAM_RATE * pace(), memory, asked if questions else "held-out text")

    def _questions(self, config: EvaluateConfig) -> int | None:
        """How many questions each model is asked: counted where they exist, else expected from the text."""
        if config.questions is None:
            return 0
        folder = self.done.get(config.questions) or existing(config.questions) or Path(config.questions)
        if (folder / "evaluation.jsonl").is_file():
            sets: dict[str, int] = {}
            for row in read_jsonl(folder / "evaluation.jsonl"):
                sets[str(row.get("set"))] = sets.get(str(row.get("set")), 0) + 1
            return sum(min(count, config.examples) for count in sets.values())
        made = self.stages[config.questions].config if config.questions in self.stages else None
        size = self.text(made.source) if isinstance(made, SynthVerbConfig) else None
        return None if size is None else int(min(4 * config.examples, size * QUESTIONS_PER_BYTE))

    def model(self, value: str | PretrainConfig) -> TransformerConfig | None:
        """The size of a model from its stage, its folder or the config that makes it; None where that is not here."""
        if isinstance(value, PretrainConfig) and value.base is not None:
            return with_rows(self.model(value.base), len(value.tokens))
        if isinstance(value, PretrainConfig):
            assert value.tokenizer is not None, "checked by its config"
            size = self._vocabulary(value.tokenizer)
            return model_config(value.model, size) if size else None
        made = self.stages[value].config if value in self.stages else None
        if isinstance(made, PretrainConfig) or (isinstance(made, TuningConfig) and isinstance(getattr(made, "model", None), str)):
            return self.tuned(made)
        folder = model_in(value)
        if folder is not None and files.is_adapter(folder):
            folder = files.base_of(folder)
        if folder is None and value in PUBLISHED:
            return preset(*PUBLISHED[value])
        return None if folder is None else hf.read_config(folder)

    def tuned(self, config: TuningConfig) -> TransformerConfig | None:
        """The size that a training stage trains, new tokens included; None where it is not known here."""
        if isinstance(config, PretrainConfig):
            return self.model(config)
        return with_rows(self.model(config.model), len(config.tokens))  # type: ignore[attr-defined]  # all others have it

    def _vocabulary(self, name: str) -> int:
        if name in self.stages:
            config = self.stages[name].config
            return config.vocab_size if isinstance(config, TokenizerVerbConfig) else self.vocabulary
        path = existing(name)
        folder = locate(path) if path is not None else None
        known = folder is not None and (folder / "tokenizer.json").is_file()
        return Tokenizer.load(folder).vocab_size if folder is not None and known else self.vocabulary


def _pages(config: CrawlConfig) -> int:
    if config.start != "pydoc":
        return config.max_pages
    return min(config.max_pages, PYDOC_PAGES if config.modules == "all" else len(config.modules))


@cache
def pace() -> float:
    """How much longer this machine takes over text than the one that the rates were measured on; 1 is the same."""
    return min(_probe() for _ in range(5)) / PROBE_SECONDS


def _probe() -> float:
    text = "Return the smallest value of heapq.merge(*iterables, key=None), not more. " * 3000
    started = time.perf_counter()
    re.findall(r"\w+", text)
    return time.perf_counter() - started
