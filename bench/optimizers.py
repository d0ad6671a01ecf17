"""AdamW against Muon: held-out bits per byte against time, on the documentation that this Python carries.

    python bench/optimizers.py [--preset llama-2m] [--steps 100,150] [--rates 2e-3,4e-3,8e-3] [--vocabulary 2048]

Trains every combination from the same weights on the same batches and prints one JSON line. `cpu_seconds` is the processor time of the
updates alone (all threads, without evaluations), which other programs on the machine disturb less than wall time.
"""

from __future__ import annotations

import argparse
import json
import pydoc
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

from luyen.algorithms.pretrain import Pretrain
from luyen.core.config import load
from luyen.core.records import Document
from luyen.data.loader import PackedStream
from luyen.data.samples import Sample, text_samples
from luyen.engine.config import TrainConfig
from luyen.engine.trainer import Hooks, fit
from luyen.evaluation.perplexity import bits_per_byte
from luyen.models.presets import preset
from luyen.models.transformer import Transformer
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

MODULES = """
    argparse ast asyncio base64 bisect calendar collections configparser contextlib copy csv ctypes datetime decimal difflib dis email
    enum fractions functools glob gzip heapq html http inspect io ipaddress itertools json locale logging math mimetypes numbers
    operator os pathlib pickle platform pprint queue random re sched secrets shelve shutil signal smtplib socket sqlite3 statistics
    string struct subprocess tarfile tempfile textwrap threading time tokenize traceback types typing unittest urllib.parse uuid
    warnings weakref xml.etree.ElementTree zipfile
"""
HELD_OUT_EVERY = 10


def documents() -> list[Document]:
    """The plain help text of the standard library's modules."""
    return [Document(name, pydoc.plain(pydoc.render_doc(name))) for name in MODULES.split()]


class Timed(Pretrain):
    """Pretraining that adds up processor time between the start of a batch and the next."""

    batches_ahead = False  # a batch is asked for where its step begins, so that the clock counts whole steps
    cpu_seconds = 0.0
    steps = 0

    def batches(self, state: dict[str, Any] | None) -> Any:
        """The stream, with a clock around each yield."""
        for item in super().batches(state):
            started = time.process_time()
            yield item
            self.cpu_seconds += time.process_time() - started
            self.steps += 1


def one(
    settings: dict[str, Any], size: str, tokenizer: Tokenizer, samples: list[Sample], heldout: list[Document]
) -> dict[str, Any]:  # fmt: skip
    """Train once; the row of the result."""
    torch.manual_seed(0)
    model = Transformer(preset(size, tokenizer.vocab_size))
    algorithm = Timed(model, PackedStream(samples, capacity=512, rows=8, seed=0))
    values = {"steps": settings["steps"], "evaluate_every": 0, "checkpoint": {"every_steps": settings["steps"]}, "device": "cpu"}
    config = load(TrainConfig, {**values, "optimizer": {key: settings[key] for key in ("name", "learning_rate")}})
    with tempfile.TemporaryDirectory() as folder:
        result = fit(algorithm, config, Path(folder), hooks=Hooks(lambda: {"bits": bits_per_byte(model, tokenizer, heldout, 512).value}))
    # The last update runs after its batch was taken and is not between two: scale to all steps.
    seconds = algorithm.cpu_seconds * settings["steps"] / max(1, algorithm.steps)
    bits = round(result.evaluation["bits"], 4)
    return {**settings, "heldout_bits_per_byte": bits, "loss": round(result.loss, 4), "cpu_seconds": round(seconds, 1)}


def main() -> None:
    """Run the combinations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama-2m")
    parser.add_argument("--steps", default="100")
    parser.add_argument("--names", default="adamw,muon")
    parser.add_argument("--rates", default="2e-3,4e-3,8e-3")
    parser.add_argument("--vocabulary", type=int, default=2048)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    texts = documents()
    training = [text for index, text in enumerate(texts) if index % HELD_OUT_EVERY]
    heldout = texts[::HELD_OUT_EVERY]
    tokenizer = train((text.text for text in training), TokenizerConfig(vocab_size=arguments.vocabulary))
    samples, account = text_samples(training, tokenizer, 512)
    rows = []
    combinations = product(map(int, arguments.steps.split(",")), map(float, arguments.rates.split(",")), arguments.names.split(","))
    for steps, rate, name in combinations:
        rows.append(one({"name": name, "learning_rate": rate, "steps": steps}, arguments.preset, tokenizer, samples, heldout))
        print(rows[-1], file=sys.stderr, flush=True)
    size = {"preset": arguments.preset, "vocabulary": tokenizer.vocab_size, "training_tokens": account.tokens, "tokens_per_step": 8 * 512}
    print(json.dumps({"bench": "optimizers", **size, "threads": 2, "runs": rows}))


if __name__ == "__main__":
    main()
