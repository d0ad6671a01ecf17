"""Megabytes per second of learning a vocabulary and of encoding, beside tokenizers on the same texts.

    python bench/tokenizer.py [--texts FOLDER] [--megabytes 20] [--rounds 5] [--vocab-size 8192]

FOLDER holds .txt, .jsonl (field `text`), .txt.gz or .jsonl.gz; without it, the Python files of the standard library are read. Prints one
JSON line. Ours and theirs run in turns within each round; figures are the median over the rounds, the least and the most, ratios are
formed within a round. Ratios of processor time are given too: they say less, but other programs on the machine disturb them less.
Before anything is timed, the ids of both are compared.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from luyen.tokenizer.bytelevel import PRETOKENIZERS
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import CONTROL, TokenizerConfig, train

BATCH = 256
BOOK = 20_000
"""Characters of a document that is cut from a text file."""


def read(folder: Path | None) -> Iterator[str]:
    """Documents of a folder, or of the standard library."""
    if folder is None:
        for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            if "site-packages" not in path.parts:
                yield path.read_text(encoding="utf-8", errors="replace")
        return
    for path in sorted(folder.iterdir()):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode(errors="replace")
        if ".jsonl" in path.suffixes:
            yield from (json.loads(line)["text"] for line in text.splitlines() if line.strip())
        elif ".txt" in path.suffixes:
            yield from (text[start : start + BOOK] for start in range(0, len(text), BOOK))


def evenly(documents: list[str], megabytes: float) -> list[str]:
    """So many megabytes of documents, taken at equal distances."""
    share = min(1.0, megabytes * 1e6 / sum(len(document.encode()) for document in documents))
    return [document for place, document in enumerate(documents) if int((place + 1) * share) > int(place * share)]


def trained_by_tokenizers(texts: list[str], config: TokenizerConfig, normal_form: bool) -> tokenizers.Tokenizer:
    """The same vocabulary but for ties, learnt by tokenizers."""
    learner = tokenizers.Tokenizer(models.BPE())
    if normal_form:
        learner.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZERS[config.pretokenizer]), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, min_frequency=2, show_progress=False, special_tokens=list(CONTROL), initial_alphabet=alphabet
    )
    learner.train_from_iterator(iter(texts), trainer=trainer)
    return learner


def batches(texts: list[str]) -> list[list[str]]:
    """Some hundred texts at a time, as training data is encoded."""
    return [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]


def works(texts: list[str], config: TokenizerConfig) -> tuple[dict[str, Callable[[], object]], bool]:
    """What is measured, by name, and whether both give the same ids."""
    ours = train(texts, config)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(Path(folder))
        description = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        # Texts about chat formats write control tokens, which text may not become.
        theirs = tokenizers.Tokenizer.from_str(json.dumps({**description, "added_tokens": [], "post_processor": None}))
        ours = Tokenizer.load(folder)
    some = batches(texts)

    def their_batches() -> list[list[int]]:
        return [found.ids for batch in some for found in theirs.encode_batch_fast(batch, add_special_tokens=False)]

    def our_batches() -> list[list[int]]:
        return [ids for batch in some for ids in ours.encode_batch(batch)]

    chosen: dict[str, Callable[[], object]] = {
        "train": lambda: train(texts, config),
        "train, tokenizers": lambda: trained_by_tokenizers(texts, config, normal_form=True),
        "train, tokenizers without NFC": lambda: trained_by_tokenizers(texts, config, normal_form=False),
        "encode in batches": our_batches,
        "encode in batches, tokenizers": their_batches,
        "encode one by one": lambda: [ours.encode(text) for text in texts],
        "encode one by one, tokenizers": lambda: [theirs.encode(text, add_special_tokens=False).ids for text in texts],
    }
    return chosen, our_batches() == their_batches()


def three(values: list[float]) -> list[float]:
    """The median, the least and the most."""
    return [round(function(values), 2) for function in (statistics.median, min, max)]


def compared(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Their seconds over ours, round by round."""
    return {name: three([row[name] / row[name.split(",")[0]] for row in rounds]) for name in rounds[0] if "," in name}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a folder of texts (default: the Python files of the standard library)")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=8192)
    arguments = parser.parse_args()
    texts = evenly(list(read(arguments.texts)), arguments.megabytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    chosen, same = works(texts, TokenizerConfig(vocab_size=arguments.vocab_size))
    walls: list[dict[str, float]] = []
    processors: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        wall, processor = {}, {}
        for name, work in chosen.items():
            started, used = time.perf_counter(), time.process_time()
            work()
            wall[name], processor[name] = time.perf_counter() - started, time.process_time() - used
        walls.append(wall)
        processors.append(processor)
    result = {
        "benchmark": "tokenizer",
        "documents": len(texts),
        "megabytes": round(megabytes, 1),
        "vocab_size": arguments.vocab_size,
        "same_ids": same,
        "figures_are": "median, least, most",
        "megabytes_per_second": {name: three([megabytes / row[name] for row in walls]) for name in chosen},
        "times_as_fast_as": compared(walls),
        "times_less_processor_time_than": compared(processors),
        "rounds": arguments.rounds,
        "processors": os.cpu_count(),
        "versions": {name: version(name) for name in ("tokenizers", "tiktoken", "rustbpe")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
