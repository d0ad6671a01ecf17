"""Tokens as they come, as text that can be shown at once. A conversation and a continued text stream through here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from luyen.tokenizer.load import Tokenizer

REPLACEMENT = "\ufffd"
"""What a decoder gives for the first bytes of a character whose last bytes are still to come."""


def text_pieces(tokens: Iterator[int], tokenizer: Tokenizer, written: list[int], before: Sequence[int] = ()) -> Iterator[str]:
    """The text of `tokens`, piece by piece; each id is added to `written`. A character split over tokens waits for its last one.

    `before`: ids of the text that the tokens go on from; some tokenizers drop a space at the very start of what they decode.
    """
    shown = tokenizer.decode(before)
    text = shown
    for token in tokens:
        written.append(token)
        text = tokenizer.decode([*before, *written])
        if not text.endswith(REPLACEMENT):
            yield text[len(shown) :]
            shown = text
    if text[len(shown) :]:
        yield text[len(shown) :]
