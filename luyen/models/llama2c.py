"""Models in the format of llama2.c (github.com/karpathy/llama2.c, its `run.c` and legacy `export.py`) as Hugging Face folders.

A model file holds seven little-endian int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a
negative vocab_size means a separate output head) and then float32 weights, tensor after tensor, all layers of one
kind together. Its rotary embedding pairs neighbours (2i, 2i+1), Hugging Face's pairs (i, i + E/2): the rows of the
query and key projections are reordered, which leaves every product of a query and a key unchanged.

A tokenizer file holds the longest piece's length (int32) and, for each id, a float32 score, a length and the bytes:
SentencePiece's BPE with scores, where ids 0, 1, 2 are unknown, beginning and end, and 3 to 258 are the single bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

from luyen.core import config as configs
from luyen.core import storage
from luyen.core.errors import ConfigError, ModelError
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

BOS, EOS = 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
SPACE = "▁"  # stands for a space inside pieces, as in SentencePiece
_VERSIONED = 0x616B3432  # "ak42": a later format with another header


def import_llama2c(model_bin: Path, tokenizer_bin: Path, folder: Path) -> Transformer:
    """Write the Hugging Face folder of a llama2.c model and its tokenizer into an existing folder; return the model.

    Raises ModelError when a file is cut, is of another format, or the two do not belong together.
    """
    model = read_model(model_bin)
    pieces = read_pieces(tokenizer_bin, model.config.vocab_size)
    hf.save(model, folder, bos_id=BOS, stop_ids=(EOS,))
    storage.write_atomic(Path(folder) / "tokenizer.json", build_tokenizer(pieces).to_str(pretty=True) + "\n")
    storage.write_json(
        Path(folder) / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": SPECIAL[0],
            "bos_token": SPECIAL[BOS],
            "eos_token": SPECIAL[EOS],
            "model_max_length": model.config.context_length,
            "clean_up_tokenization_spaces": False,
        },
    )
    return model


def read_model(path: Path) -> Transformer:
    """The decoder of a llama2.c model file, in float32."""
    data = _read(path)
    if len(data) < 28:
        raise ModelError(f"{path} is not a llama2.c model", found=f"{len(data)} bytes", expected="a header of 28 bytes and weights")
    width, hidden, layers, heads, kv_heads, vocabulary, length = header = struct.unpack("<7i", data[:28])
    if width == _VERSIONED:
        raise ModelError(f"{path} is a versioned llama2.c file", expected="the legacy format (export.py --version 0)")
    if min(width, hidden, layers, heads, kv_heads, abs(vocabulary), length) < 1 or width % heads or length > 1 << 24:
        raise ModelError(f"{path} is not a llama2.c model", found=f"header {header}", expected="seven sizes")
    values = {
        "vocab_size": abs(vocabulary), "hidden_size": width, "intermediate_size": hidden, "num_layers": layers, "num_heads": heads,
        "num_kv_heads": kv_heads, "context_length": length, "tied": vocabulary > 0,
    }  # fmt: skip
    try:
        config = configs.load(TransformerConfig, values, source=str(path))
    except ConfigError as error:
        raise ModelError(f"{path} is not a llama2.c model", found=error, expected="seven sizes that fit each other") from error
    count = _count(config)
    if len(data) != 28 + 4 * count:
        raise ModelError(
            f"{path} does not have the size that its header asks for", found=f"{len(data)} bytes", expected=f"{28 + 4 * count} bytes",
            fix="Copy it again, or export it in the legacy float32 format.",
        )  # fmt: skip
    tensors = dict(_tensors(config, numpy.frombuffer(data, dtype="<f4", offset=28)))
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(True)


def _count(config: TransformerConfig) -> int:
    """Number of float32 values after the header."""
    width, size = config.hidden_size, config.head_dim
    layer = 2 * width + 2 * width * size * (config.num_heads + config.num_kv_heads) + 3 * width * config.intermediate_size
    heads = config.vocab_size * width * (1 if config.tied else 2)
    return heads + config.num_layers * layer + width + config.context_length * size


def _tensors(config: TransformerConfig, weights: NDArray[numpy.float32]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the order of the file."""
    width, feed, heads, kv_heads = config.hidden_size, config.intermediate_size, config.num_heads, config.num_kv_heads
    position = 0

    def take(*shape: int) -> Tensor:
        nonlocal position
        count = int(numpy.prod(shape))
        position += count
        return torch.from_numpy(weights[position - count : position].astype(numpy.float32).reshape(shape))

    yield "model.embed_tokens.weight", take(config.vocab_size, width)
    kinds: list[tuple[str, tuple[int, ...]]] = [
        ("input_layernorm", (width,)),
        ("self_attn.q_proj", (heads * config.head_dim, width)),
        ("self_attn.k_proj", (kv_heads * config.head_dim, width)),
        ("self_attn.v_proj", (kv_heads * config.head_dim, width)),
        ("self_attn.o_proj", (width, heads * config.head_dim)),
        ("post_attention_layernorm", (width,)),
        ("mlp.gate_proj", (feed, width)),
        ("mlp.down_proj", (width, feed)),
        ("mlp.up_proj", (feed, width)),
    ]
    for kind, shape in kinds:
        for layer in range(config.num_layers):
            tensor = take(*shape)
            if kind.endswith(("q_proj", "k_proj")):
                tensor = halves_from_pairs(tensor, config.head_dim)
            yield f"model.layers.{layer}.{kind}.weight", tensor
    yield "model.norm.weight", take(width)
    # Two tables of angles that newer readers compute: they say which base the model was trained with.
    cosine = take(config.context_length, config.head_dim // 2)
    take(config.context_length, config.head_dim // 2)
    angle = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    if config.context_length > 1 and not torch.allclose(cosine[1], angle.cos(), atol=1e-3):
        raise ModelError("the llama2.c file has rotary angles of another base", found=cosine[1][-1].item(), expected="those of base 10000")
    if not config.tied:
        yield "lm_head.weight", take(config.vocab_size, width)


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection, from neighbours as rotary pairs to halves as rotary pairs, head by head."""
    rows, width = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, width).transpose(1, 2).reshape(rows, width).contiguous()


def read_pieces(path: Path, vocab_size: int) -> list[tuple[bytes, float]]:
    """Bytes and score of each of the `vocab_size` pieces of a llama2.c tokenizer file."""
    data, offset = _read(path), 4
    pieces: list[tuple[bytes, float]] = []
    while len(pieces) < vocab_size and offset + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, offset)
        if length < 0 or offset + 8 + length > len(data):
            break
        pieces.append((data[offset + 8 : offset + 8 + length], score))
        offset += 8 + length
    if len(pieces) < vocab_size or offset != len(data):
        raise ModelError(
            f"{path} is not the tokenizer of this model", found=f"{len(pieces)} pieces in {offset} of {len(data)} bytes",
            expected=f"{vocab_size} pieces to the end of the file",
        )  # fmt: skip
    return pieces


def build_tokenizer(pieces: list[tuple[bytes, float]]) -> Tokenizer:
    """The same tokenization as llama2.c's: a space before the text, characters, then the best-scored merge first, bytes for the rest.

    A merge's rank is the score of what it makes. `encode` puts the beginning token before the text.
    """
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    for number, (piece, _) in enumerate(pieces[len(names) :], len(names)):
        try:
            names.append(piece.decode().replace(" ", SPACE))
        except UnicodeDecodeError as error:
            raise ModelError(f"piece {number} of the llama2.c tokenizer is not UTF-8", found=piece) from error
    vocabulary = {name: number for number, name in enumerate(names)}
    if len(vocabulary) != len(names):
        raise ModelError("the llama2.c tokenizer has a piece twice", found=f"{len(names) - len(vocabulary)} copies")
    merges = []
    for number in range(len(SPECIAL) + 256, len(names)):
        name = names[number]
        for cut in range(1, len(name)):
            left, right = vocabulary.get(name[:cut]), vocabulary.get(name[cut:])
            if left is not None and right is not None:
                merges.append((-pieces[number][1], left, right))
    merges.sort()
    pairs = [(names[left], names[right]) for _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token=SPECIAL[0], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", pair=f"{SPECIAL[BOS]} $A {SPECIAL[BOS]} $B", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}", found=error.strerror) from error
