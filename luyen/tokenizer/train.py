"""Learning a vocabulary: byte-level BPE (Sennrich et al., 2016, arXiv:1508.07909; bytes after GPT-2), whole words, characters.

Pre-tokenizers are the ones that llama.cpp implements under these names of its own: `qwen2` (Qwen2), `llama3`
(there llama-bpe) and `gpt2` (there gpt-2). The default is Qwen2's: it takes digits one by one, as Llama 2 does, so that a
small vocabulary spends no entries on the 1,110 numbers of up to three digits and copies a number digit by digit; it
keeps a line break with the punctuation before it; and its contractions match in both cases.

Same texts, same config: same bytes, whatever the order of the texts. Ties in BPE go to the pair with the smaller ids (bytes in order,
then older entries first), ties between words to the one that sorts first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from luyen.core import interrupt, progress
from luyen.core.config import Config
from luyen.core.errors import ConfigError, DataError
from luyen.tokenizer.bytelevel import PRETOKENIZERS, SPELLING, composed, spell
from luyen.tokenizer.folder import Facts
from luyen.tokenizer.load import Tokenizer, checked_text
from luyen.tokenizer.pairs import learn_pairs
from luyen.tokenizer.templates import Names, template_named

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
CONTROL = (PAD, BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
LONGEST_TEXT = 1 << 16
"""Characters that the trainer sees at a time; longer texts are cut at white space, which bounds memory."""

WORD = r" ?[\p{L}\p{M}\p{N}_]+| ?[^\s\p{L}\p{M}\p{N}_]|\s"
"""A whole word of any script, or one sign, with the space before it; or one white space character."""
CHARACTER = r"[\s\S]"


class TokenizerConfig(Config):
    """How to learn a vocabulary."""

    kind: Literal["bpe", "word", "character"] = "bpe"
    """bpe: byte-level pairs, every text can be written. word: whole words, the rest unknown. character: every character seen."""
    vocab_size: int = 4096
    """Largest number of ids, the 8 control tokens (and 256 bytes for bpe) included; fewer when the texts hold no more."""
    min_frequency: int = 2
    """A pair (bpe) or word (word) must be seen this often to get an id. Characters are kept however rare."""
    pretokenizer: Literal["qwen2", "llama3", "gpt2"] = "qwen2"
    """How bpe cuts text before merging. qwen2: single digits. llama3: up to three digits. gpt2: all digits together."""
    normalise: Literal["nfc", "none"] = "nfc"
    """nfc: composed and decomposed letters become the same ids. none: every byte is kept as it is."""
    template: str = "luyen"
    """Chat template written beside the vocabulary; only `luyen` fits the control tokens of a new vocabulary."""


def train(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Learn a vocabulary from texts.

    Raises ConfigError for a vocabulary that cannot hold its fixed part, DataError when the texts hold nothing.
    """
    template = template_named(config.template)
    missing = [token for token in template.needs(OWN) if token not in CONTROL]
    if missing:
        raise ConfigError("template", found=config.template, expected="luyen", fix=f"A new vocabulary has no {missing[0]}.")
    trained = _learn(texts, config)
    description = json.loads(trained.to_str())
    # The trainer lists the token for unknown text among the special ones; as an ordinary entry it stays visible when decoded.
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] != UNKNOWN]
    return Tokenizer(description, Facts(settings=_settings(), names=OWN, template=template))


OWN = Names(bos=BOS, eos=EOS, pad=PAD)


def _settings() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "padding_side": "left",
    }


def _learn(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    smallest = len(CONTROL) + (256 if config.kind == "bpe" else 2)
    if config.vocab_size < smallest:
        raise ConfigError("vocab_size", found=config.vocab_size, expected=f"at least {smallest} for kind {config.kind}")
    if config.min_frequency < 0:
        raise ConfigError("min_frequency", found=config.min_frequency, expected="0 or more")
    learner = _byte_pairs(texts, config, config.vocab_size - smallest) if config.kind == "bpe" else _words(texts, config)
    if learner.get_vocab_size() < smallest:
        raise DataError("there is no text to learn a vocabulary from", fix="Check that the corpus is not empty.")
    if config.normalise == "nfc":
        learner.normalizer = normalizers.NFC()
    bos = learner.token_to_id(BOS)
    learner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)])
    return learner


def _byte_pairs(texts: Iterable[str], config: TokenizerConfig, merges: int) -> tokenizers.Tokenizer:
    pattern = PRETOKENIZERS[config.pretokenizer]
    pairs = learn_pairs(_feed(texts, config), pattern, merges, config.min_frequency)
    spelt = [(spell(left), spell(right)) for left, right in pairs]
    entries = [*CONTROL, *SPELLING, *(left + right for left, right in spelt)]
    learner = tokenizers.Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, spelt))
    learner.add_special_tokens(list(CONTROL))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    learner.decoder = decoders.ByteLevel()
    return learner


def _words(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    learner = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    stretch = WORD if config.kind == "word" else CHARACTER
    learner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(stretch), behavior="isolated")
    learner.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency if config.kind == "word" else 0,
        show_progress=False,
        special_tokens=[*CONTROL, UNKNOWN],
    )
    # A text that holds the sign for unknown text must not give it a second id.
    learner.train_from_iterator((part.replace(UNKNOWN, "") for part in _feed(texts, config)), trainer=trainer)
    return learner


def _feed(texts: Iterable[str], config: TokenizerConfig) -> Iterator[str]:
    seen = 0
    with progress.task("reading for the vocabulary", None, "documents") as task:
        for text in texts:
            interrupt.check()
            checked = checked_text(text)
            for part in _parts(composed(checked) if config.normalise == "nfc" else checked):
                seen += len(part)
                yield part
            task.advance()
    if not seen:
        raise DataError("there is no text to learn a vocabulary from", fix="Check that the corpus is not empty.")


def _parts(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > LONGEST_TEXT:
        cut = max(text.rfind(" ", start + 1, start + LONGEST_TEXT), text.rfind("\n", start + 1, start + LONGEST_TEXT))
        end = cut if cut > 0 else start + LONGEST_TEXT
        yield text[start:end]
        start = end
    yield text[start:]
