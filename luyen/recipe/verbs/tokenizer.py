"""`tokenizer`: documents to a vocabulary."""

from __future__ import annotations

from collections import defaultdict

from luyen.core import storage
from luyen.recipe.configs import TokenizerVerbConfig
from luyen.recipe.documents import Texts
from luyen.recipe.stage import Stage
from luyen.tokenizer.fertility import fertility
from luyen.tokenizer.train import train

SAMPLE_LENGTH = 300


def run(config: TokenizerVerbConfig, stage: Stage) -> None:
    """Train on the training documents; fertility is measured on the held-out ones where there are any."""
    texts = Texts(stage.files(config.data), config.read, stage.folder / "rejected.jsonl")
    tokenizer = train((document.text for document in texts.train), config)
    tokenizer.save(stage.folder)
    measured = texts.heldout or texts.train
    by_language: dict[str, list[str]] = defaultdict(list)
    for document in measured:
        by_language[document.language or "unknown"].append(document.text)
    rows = fertility(tokenizer, by_language)
    storage.write_json(stage.folder / "fertility.json", rows)
    sample = measured[0].text[:SAMPLE_LENGTH]
    stage.metrics.update(
        vocab_size=tokenizer.vocab_size,
        control_tokens=dict(tokenizer.control),
        measured_on="held-out documents" if texts.heldout else "training documents",
        sample=[tokenizer.decode([token], skip_control=False) for token in tokenizer.encode(sample)],
        fertility=rows,
        read=texts.account,
        summary=f"{tokenizer.vocab_size} tokens; "
        + ", ".join(f"{row['language']} {row['bytes_per_token']:.2f} bytes/token" for row in rows),
    )
