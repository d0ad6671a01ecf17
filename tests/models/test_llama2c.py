"""llama2.c files against a plain numpy forward pass and a plain tokenizer, both written from llama2.c's description."""

import json
import struct
from pathlib import Path

import numpy
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from luyen.core.errors import ModelError
from luyen.models import hf
from luyen.models.llama2c import import_llama2c, read_model

LETTERS = " abcdehlorw"
MERGED = [(" h", 5.0), ("ll", 4.0), ("he", 6.0), ("lo", 3.0), ("llo", 2.0), ("hello", 1.0), (" w", 0.5), ("or", 0.25), (" wor", 0.1)]
PIECES = [
    (b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), *((f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)),
    *((piece.encode(), score) for piece, score in MERGED), *((letter.encode(), -100.0) for letter in LETTERS),
]  # fmt: skip
WIDTH, FEED, LAYERS, HEADS, KV_HEADS, LENGTH = 16, 24, 2, 4, 2, 12
SIZE = WIDTH // HEADS


def write(folder: Path, shared: bool) -> dict[str, numpy.ndarray]:
    """A random llama2.c model and its tokenizer; returns the tensors in the order of the file."""
    random = numpy.random.default_rng(0)
    vocabulary = len(PIECES)
    angles = numpy.outer(numpy.arange(LENGTH), 10000.0 ** (-numpy.arange(0, SIZE, 2) / SIZE))
    shapes = {
        "embedding": (vocabulary, WIDTH), "norm1": (LAYERS, WIDTH), "q": (LAYERS, WIDTH, WIDTH), "k": (LAYERS, KV_HEADS * SIZE, WIDTH),
        "v": (LAYERS, KV_HEADS * SIZE, WIDTH), "o": (LAYERS, WIDTH, WIDTH), "norm2": (LAYERS, WIDTH), "w1": (LAYERS, FEED, WIDTH),
        "w2": (LAYERS, WIDTH, FEED), "w3": (LAYERS, FEED, WIDTH), "norm3": (WIDTH,),
    }  # fmt: skip
    tensors = {name: random.normal(1.0 if "norm" in name else 0.0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}
    tensors["cos"], tensors["sin"] = numpy.cos(angles).astype("<f4"), numpy.sin(angles).astype("<f4")
    if not shared:
        tensors["head"] = random.normal(0, 0.3, (vocabulary, WIDTH)).astype("<f4")
    header = struct.pack("<7i", WIDTH, FEED, LAYERS, HEADS, KV_HEADS, vocabulary if shared else -vocabulary, LENGTH)
    (folder / "model.bin").write_bytes(header + b"".join(tensor.tobytes() for tensor in tensors.values()))
    pieces = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in PIECES)
    (folder / "tok.bin").write_bytes(struct.pack("<i", 7) + pieces)
    return tensors


def plain_forward(weights: dict[str, numpy.ndarray], tokens: list[int]) -> numpy.ndarray:
    """Scores after the last token, one token at a time as in llama2.c, in float64."""

    def norm(x: numpy.ndarray, weight: numpy.ndarray) -> numpy.ndarray:
        return x / numpy.sqrt((x**2).mean() + 1e-5) * weight

    def turn(x: numpy.ndarray, position: int) -> numpy.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = position * 10000.0 ** (-(i % SIZE) / SIZE)
            out[i] = x[i] * numpy.cos(angle) - x[i + 1] * numpy.sin(angle)
            out[i + 1] = x[i] * numpy.sin(angle) + x[i + 1] * numpy.cos(angle)
        return out

    w = {name: tensor.astype(numpy.float64) for name, tensor in weights.items()}
    keys: list[list[numpy.ndarray]] = [[] for _ in range(LAYERS)]
    values: list[list[numpy.ndarray]] = [[] for _ in range(LAYERS)]
    for position, token in enumerate(tokens):
        x = w["embedding"][token]
        for layer in range(LAYERS):
            n = norm(x, w["norm1"][layer])
            q = turn(w["q"][layer] @ n, position)
            keys[layer].append(turn(w["k"][layer] @ n, position))
            values[layer].append(w["v"][layer] @ n)
            heads = []
            for head in range(HEADS):
                part = slice(head * KV_HEADS // HEADS * SIZE, (head * KV_HEADS // HEADS + 1) * SIZE)
                scores = numpy.array([q[head * SIZE : (head + 1) * SIZE] @ key[part] for key in keys[layer]]) / SIZE**0.5
                chances = numpy.exp(scores - scores.max())
                chances /= chances.sum()
                heads.append(sum(chance * value[part] for chance, value in zip(chances, values[layer], strict=True)))
            x = x + w["o"][layer] @ numpy.concatenate(heads)
            n = norm(x, w["norm2"][layer])
            gate = w["w1"][layer] @ n
            x = x + w["w2"][layer] @ (gate / (1 + numpy.exp(-gate)) * (w["w3"][layer] @ n))
    return w.get("head", w["embedding"]) @ norm(x, w["norm3"])


def plain_encode(text: str) -> list[int]:
    """llama2.c's `encode`: characters or bytes, then again and again the best-scored pair, leftmost first."""
    lookup = {piece: number for number, (piece, _) in reversed(list(enumerate(PIECES)))}
    tokens: list[int] = []
    for character in " " + text:
        data = character.encode()
        tokens.extend([lookup[data]] if data in lookup else [byte + 3 for byte in data])
    while True:
        best = max(
            (
                (PIECES[lookup[pair]][1], -place)
                for place in range(len(tokens) - 1)
                if (pair := PIECES[tokens[place]][0] + PIECES[tokens[place + 1]][0]) in lookup
            ),
            default=None,
        )
        if best is None:
            return [1, *tokens]
        place = -best[1]
        tokens[place : place + 2] = [lookup[PIECES[tokens[place]][0] + PIECES[tokens[place + 1]][0]]]


@pytest.mark.parametrize("shared", [True, False])
def test_scores_equal_a_plain_forward_pass(tmp_path, shared) -> None:
    weights = write(tmp_path, shared)
    folder = tmp_path / "out"
    folder.mkdir()
    model = import_llama2c(tmp_path / "model.bin", tmp_path / "tok.bin", folder)
    tokens = [1, 260, 262, 265, 270, 263, 261, 3]
    expected = numpy.stack([plain_forward(weights, tokens[: end + 1]) for end in range(len(tokens))])
    batch = torch.tensor([tokens])
    for candidate in (model, hf.load(folder)):
        numpy.testing.assert_allclose(candidate.logits(candidate(batch))[0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    numpy.testing.assert_allclose(theirs(batch).logits[0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["hello world", "he  hello", "xin chào 😀", "", "helloworld", "<s> hello </s>", "lollo\nhe"])
def test_the_tokenizer_gives_the_ids_of_llama2c(tmp_path, text) -> None:
    write(tmp_path, shared=True)
    import_llama2c(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path)
    ours, theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), AutoTokenizer.from_pretrained(tmp_path)
    plain = [1] if not text else plain_encode(text)
    if "<s>" in text:  # llama2.c has no control tokens in text; our tokenizer's encode must be told to see none
        ours.encode_special_tokens = True
        assert 1 not in ours.encode(text, add_special_tokens=False).ids and 2 not in ours.encode(text).ids
    else:
        assert theirs(text).input_ids == ours.encode(text).ids
    assert ours.encode(text).ids == plain
    assert ours.decode(plain) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_the_folder_is_standard(tmp_path) -> None:
    write(tmp_path, shared=True)
    import_llama2c(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["max_position_embeddings"]) == (1, 2, LENGTH)


def test_files_that_are_not_llama2c(tmp_path) -> None:
    write(tmp_path, shared=True)
    model, tokenizer = tmp_path / "model.bin", tmp_path / "tok.bin"
    whole, pieces = model.read_bytes(), tokenizer.read_bytes()
    bad = {
        b"": "28 bytes", b"\0" * 40: "seven sizes", whole[:-4]: "does not have the size", whole + b"\0\0\0\0": "does not have the size",
        struct.pack("<7i", 0x616B3432, 1, 1, 1, 1, 1, 1) + whole[28:]: "versioned",
        struct.pack("<7i", 16, 24, 2, 4, 3, 300, 12) + whole[28:]: "does not divide",
    }  # fmt: skip
    for data, told in bad.items():
        model.write_bytes(data)
        with pytest.raises(ModelError, match=told):
            read_model(model)
    table = len(whole) - 4 * LENGTH * SIZE
    model.write_bytes(whole[:table] + struct.pack("<f", 0.5) * LENGTH * SIZE)
    with pytest.raises(ModelError, match="another base"):
        read_model(model)
    with pytest.raises(ModelError, match="cannot read"):
        read_model(tmp_path / "none.bin")
    model.write_bytes(whole)
    for data in (pieces[:-1], pieces[: len(pieces) // 2], pieces + b"\0", b""):
        tokenizer.write_bytes(data)
        with pytest.raises(ModelError, match="not the tokenizer of this model"):
            import_llama2c(model, tokenizer, tmp_path)
