"""Models of a few thousand random weights with a small tokenizer, in folders, for commands that only need some model."""

from __future__ import annotations

from pathlib import Path

import torch

from luyen.core import manifest
from luyen.models import hf
from luyen.models.config import TransformerConfig, VariantConfig
from luyen.models.transformer import Transformer
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import TokenizerConfig, train

TEXTS = ["The function dumps turns an object into a string.", "Xin chào thế giới. Привет, мир!"] * 3


def write_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer folder with a chat template."""
    tokenizer = train(TEXTS, TokenizerConfig(vocab_size=330))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    return tokenizer


def write_model(
    folder: Path, *, template: bool = True, algorithm: str = "sft", context: int = 128, variant: VariantConfig | None = None
) -> Path:  # fmt: skip
    """A sealed model folder; without `template` nothing in it says how to chat."""
    tokenizer = write_tokenizer(folder)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2,
        context_length=context, init_std=0.5, variant=variant or VariantConfig(),
    )  # fmt: skip
    with torch.no_grad():
        hf.save(Transformer(config), folder, bos_id=tokenizer.bos_id, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    if not template:
        (folder / "chat_template.jinja").unlink()
    manifest.seal(folder, "model", lineage={"algorithm": algorithm})
    return folder
