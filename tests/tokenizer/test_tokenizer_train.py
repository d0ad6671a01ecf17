"""Learning vocabularies: known splits, BPE against a plain reference, equal bytes, clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers

from luyen.core import interrupt
from luyen.core.errors import ConfigError, DataError, Interrupted
from luyen.tokenizer import pairs
from luyen.tokenizer import train as training
from luyen.tokenizer.bytelevel import SPELLING
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.train import CONTROL, PRETOKENIZERS, UNKNOWN, TokenizerConfig, train


def splits(name: str, text: str) -> list[str]:
    splitter = pre_tokenizers.Split(Regex(PRETOKENIZERS[name]), behavior="isolated")
    return [part for part, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt2", "Hello world!!!? (안녕하세요!) lol123 😉", ["Hello", " world", "!!!?", " (", "안녕하세요", "!)", " lol", "123", " 😉"]),
        ("gpt2", "HOW'S you've I'D", ["HOW", "'", "S", " you", "'ve", " I", "'", "D"]),
        ("gpt2", "a   b", ["a", "  ", " b"]),
        ("gpt2", "don’t", ["don", "’", "t"]),
        ("llama3", " 12345", [" ", "123", "45"]),
        ("llama3", "HOW'S", ["HOW", "'S"]),
        ("llama3", "don’t", ["don", "’t"]),
        ("llama3", "12345;\n\n  y", ["123", "45", ";\n\n", " ", " y"]),
        ("qwen2", " 12345;\n\n  y", [" ", "1", "2", "3", "4", "5", ";\n\n", " ", " y"]),
        ("qwen2", "HOW'S", ["HOW", "'S"]),
    ],
)
def test_pretokenizers_split_as_published(name: str, text: str, expected: list[str]) -> None:
    assert splits(name, text) == expected


Words = dict[tuple[str, ...], int]


def reference_merges(words: Words, count: int, rank: Callable[[tuple[str, str], list[str], Counter[tuple[str, str]]], object]) -> list[str]:
    """Sennrich's algorithm without any cleverness. `rank` breaks ties between the most frequent pairs: the smallest wins."""
    symbols = sorted({symbol for word in words for symbol in word}, key=lambda symbol: (*SPELLING, "</w>").index(symbol))
    merges = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, frequency in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += frequency
        most = max(pairs.values())
        best = min((pair for pair in pairs if pairs[pair] == most), key=lambda pair: rank(pair, symbols, pairs))
        merges.append(" ".join(best))
        symbols.append("".join(best))
        words = {merged(word, best): frequency for word, frequency in words.items()}
    return merges


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair and not result[-1].startswith("\0"):
            result[-1] += symbol
            result[-1] = "\0" + result[-1]  # a symbol made in this round is not merged again in it
        else:
            result.append(symbol)
    return tuple(symbol.removeprefix("\0") for symbol in result)


def first_seen(pair: tuple[str, str], symbols: list[str], pairs: Counter[tuple[str, str]]) -> object:
    return list(pairs).index(pair)


def smaller_ids(pair: tuple[str, str], symbols: list[str], pairs: Counter[tuple[str, str]]) -> object:
    return symbols.index(pair[0]), symbols.index(pair[1])


SENNRICH = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def learnt_merges(tokenizer: Tokenizer) -> list[str]:
    return [" ".join(merge) for merge in json.loads(tokenizer._whole.to_str())["model"]["merges"]]


def test_the_reference_gives_the_published_merges() -> None:
    words = {(*word, "</w>"): frequency for word, frequency in SENNRICH.items()}
    published = ["e s", "es t", "est </w>", "l o", "lo w", "n e", "ne w", "new est</w>", "low </w>", "w i"]
    assert reference_merges(words, 10, first_seen) == published


def test_merges_and_ties_are_those_of_the_reference() -> None:
    texts = [f"{word}Z" for word, frequency in SENNRICH.items() for _ in range(frequency)]
    tokenizer = train(texts, TokenizerConfig(vocab_size=264 + 10, min_frequency=1))
    words = {(*word, "Z"): frequency for word, frequency in SENNRICH.items()}
    assert learnt_merges(tokenizer) == reference_merges(words, 10, smaller_ids)
    assert [tokenizer.token(index) for index in tokenizer.encode("lowest")] == ["low", "es", "t"]


def test_merges_of_running_text_are_those_of_the_reference() -> None:
    text = "she sells sea shells by the sea shore the shells she sells are sea shells for sure"
    tokenizer = train([text], TokenizerConfig(vocab_size=264 + 25, min_frequency=1))
    words: Counter[tuple[str, ...]] = Counter(tuple(part.replace(" ", "Ġ")) for part in splits("qwen2", text))
    assert learnt_merges(tokenizer) == reference_merges(dict(words), 25, smaller_ids)


def merges_of_tokenizers(texts: list[str], config: TokenizerConfig) -> list[str]:
    """What the trainer of tokenizers learns when the bytes are numbered in order."""
    learner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZERS[config.pretokenizer]), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, min_frequency=config.min_frequency, show_progress=False, special_tokens=[*CONTROL, *SPELLING]
    )
    learner.train_from_iterator(texts, trainer=trainer)
    return [" ".join(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text(alphabet="abc dđ мир12!'s\n😉", max_size=12), min_size=1, max_size=30),
    merges=st.integers(0, 40),
    min_frequency=st.integers(0, 4),
    pretokenizer=st.sampled_from(sorted(PRETOKENIZERS)),
)
def test_merges_are_those_of_tokenizers(words: list[str], merges: int, min_frequency: int, pretokenizer: str) -> None:
    config = TokenizerConfig(
        vocab_size=264 + merges, min_frequency=min_frequency, pretokenizer=pretokenizer, normalise="none"
    )  # fmt: skip
    texts = ["x", *words]
    assert learnt_merges(train(texts, config)) == merges_of_tokenizers(texts, config)


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = [f"từ {n % 7} слово {n % 11} word{n % 13}" for n in range(300)]
    config = TokenizerConfig(vocab_size=330)
    assert learnt_merges(train(texts, config)) == learnt_merges(train(sorted(texts), config))


def test_nul_is_never_merged() -> None:
    tokenizer = train(["\0\0\0ab\0ab"] * 9, TokenizerConfig(vocab_size=300))
    assert learnt_merges(tokenizer) == ["a b"]
    assert tokenizer.decode(tokenizer.encode("\0\0ab\0")) == "\0\0ab\0"


def test_more_text_than_can_be_counted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="too much text to learn a vocabulary from"):
        train(["đ" * 25, "đ" * 25], TokenizerConfig())
    assert train(["đ" * 25, "đ" * 24], TokenizerConfig()).vocab_size > 264


def test_long_stretches_of_white_space_are_learnt_from() -> None:
    assert learnt_merges(train([" " * 300_000 + "x"], TokenizerConfig(vocab_size=266)))[0] == "Ġ Ġ"


def test_minbpe_example() -> None:
    tokenizer = train(["aaabdaaabac"], TokenizerConfig(vocab_size=264 + 3, min_frequency=1))
    ids = tokenizer.encode("aaabdaaabac")
    assert [tokenizer.token(index) for index in ids] == ["aaab", "d", "aaab", "a", "c"]
    assert (ids[0], ids[2]) == (266, 266)


def test_control_tokens_come_first_and_count(own: Tokenizer) -> None:
    assert dict(own.control) == {token: number for number, token in enumerate(CONTROL)}
    assert own.vocab_size <= 600
    assert (own.pad_id, own.bos_id, own.eos_id) == (0, 1, 2)
    assert own.stop_ids == (2, 7)
    assert own.unknown_id is None


def test_vocab_size_is_met_exactly_when_the_texts_allow() -> None:
    texts = ["The quick brown fox jumps over the lazy dog, and the dog sleeps on."] * 3
    assert train(texts, TokenizerConfig(vocab_size=290)).vocab_size == 290
    assert train(["aa"], TokenizerConfig(vocab_size=4096)).vocab_size == 264


def test_every_byte_has_an_id() -> None:
    tokenizer = train(["abc"], TokenizerConfig(vocab_size=264))
    text = "".join(map(chr, range(0x250))) + "漢😉"
    assert len(tokenizer.encode("漢")) == 3
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stay_single_by_default() -> None:
    texts = ["12345 12345 12345"] * 9
    single = train(texts, TokenizerConfig(vocab_size=300))
    together = train(texts, TokenizerConfig(vocab_size=300, pretokenizer="gpt2"))
    assert [single.token(index) for index in single.encode("12345")] == list("12345")
    assert [together.token(index) for index in together.encode("12345")] == ["12345"]


def test_without_normalisation_every_byte_is_kept() -> None:
    decomposed = "Vie\u0302\u0323t"
    kept = train(["Việt"] * 3, TokenizerConfig(vocab_size=300, normalise="none"))
    assert kept.decode(kept.encode(decomposed)) == decomposed


WORDS = ["Việt Nam, Hà Nội", "Việt Nam 2024", "мир и Việt"]


def test_word_level_knows_whole_words_of_any_script() -> None:
    tokenizer = train(WORDS, TokenizerConfig(kind="word", vocab_size=40, min_frequency=1))
    text = "Việt Nam, мир"
    assert [tokenizer.token(index) for index in tokenizer.encode("Việt Nam, 2024")] == ["Việt", " Nam", ",", " 2024"]
    assert tokenizer.decode(tokenizer.encode("Việt Nam, Hà Nội")) == "Việt Nam, Hà Nội"
    assert tokenizer.encode(text)[-1] == tokenizer.unknown_id  # only ever seen without a space before it
    assert tokenizer.decode(tokenizer.encode(text)) == f"Việt Nam,{UNKNOWN}"
    assert tokenizer.encode("<|end|>") == [tokenizer.unknown_id] * 5


def test_word_level_keeps_the_most_frequent_and_ties_in_order() -> None:
    texts = ["b\na\nb\nc\na\nb"]
    tokenizer = train(texts, TokenizerConfig(kind="word", vocab_size=len(CONTROL) + 4, min_frequency=1))
    assert [tokenizer.token(len(CONTROL) + place) for place in range(4)] == [UNKNOWN, "\n", "b", "a"]
    rare = train(texts, TokenizerConfig(kind="word", vocab_size=99, min_frequency=2))
    assert rare.encode("c") == [rare.unknown_id]


def test_character_level_knows_every_character_seen() -> None:
    tokenizer = train(["xin chào\n", "😉"], TokenizerConfig(kind="character", vocab_size=100))
    assert tokenizer.vocab_size == len(CONTROL) + 1 + len(set("xin chào\n😉"))
    assert tokenizer.decode(tokenizer.encode("à nhìn 😉\n")) == f"à nh{UNKNOWN}n 😉\n"
    assert len(tokenizer.encode("chào")) == 4


def test_the_sign_for_unknown_text_has_one_id() -> None:
    tokenizer = train([f"a{UNKNOWN}b"] * 9, TokenizerConfig(kind="character", vocab_size=100))
    assert tokenizer.vocab_size == len(CONTROL) + 3
    assert tokenizer.encode(UNKNOWN) == [tokenizer.unknown_id]


@pytest.mark.parametrize("kind", ["bpe", "word", "character"])
def test_same_texts_give_the_same_bytes_in_any_process(kind: str, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from luyen.tokenizer.train import TokenizerConfig, train\n"
        "words = [f'w{n % 97}x{n % 31} từ{n % 53}' for n in range(2000)]\n"
        "texts = [' '.join(words[n:n + 40]) for n in range(0, 2000, 10)]\n"
        "train(texts, TokenizerConfig(kind=sys.argv[2], vocab_size=700)).save(Path(sys.argv[1]))\n"
    )
    seen = []
    for number, threads in enumerate(("1", "2")):
        folder = tmp_path / str(number)
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", program, str(folder), kind], check=True, env=environment, timeout=60)
        seen.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert sorted(seen[0]) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert seen[0] == seen[1]


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size; found 263; expected at least 264"):
        train(["a"], TokenizerConfig(vocab_size=263))
    with pytest.raises(ConfigError, match="min_frequency"):
        train(["a"], TokenizerConfig(min_frequency=-1))
    with pytest.raises(ConfigError, match="template; found chatml; expected luyen"):
        train(["a"], TokenizerConfig(template="chatml"))
    with pytest.raises(ConfigError, match="Did you mean 'luyen'"):
        train(["a"], TokenizerConfig(template="luyn"))


def test_no_text_is_refused() -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="no text"):
            train(texts, TokenizerConfig())
    with pytest.raises(DataError, match="surrogate"):
        train(["\ud800"], TokenizerConfig())


def test_a_signal_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_after(texts: int) -> Iterator[str]:
        for number in range(texts):
            if number == 5:
                monkeypatch.setattr(interrupt, "_requested", [15])
            yield "text"

    with pytest.raises(Interrupted):
        train(stop_after(10), TokenizerConfig())


def test_long_texts_are_cut_at_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LONGEST_TEXT", 10)
    assert list(training._parts("one two three four")) == ["one two", " three", " four"]
    assert list(training._parts("a" * 25)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(training._parts("")) == [""]
