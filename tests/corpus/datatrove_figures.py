"""What datatrove's filters measure, found by asking them: a threshold of exactly the figure keeps a text, the next number drops it.

    python tests/corpus/datatrove_figures.py

writes golden_datatrove.json again (needs datatrove, spacy and pyvi); the tests that read it need none of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luyen.corpus.published import FILTERS
from luyen.corpus.quality import BY_NAME
from luyen.corpus.words import STOP_WORDS, Words

GOLDEN = Path(__file__).with_name("golden_datatrove.json")
CODES = {"en": "eng", "vi": "vie", "ru": "rus"}
ARGUMENTS = {
    "gopher_short_doc": "min_doc_words", "gopher_long_doc": "max_doc_words", "gopher_below_avg_threshold": "min_avg_word_length",
    "gopher_above_avg_threshold": "max_avg_word_length", "gopher_too_many_hashes": "max_symbol_word_ratio",
    "gopher_too_many_ellipsis": "max_symbol_word_ratio", "gopher_too_many_bullets": "max_bullet_lines_ratio",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines_ratio", "gopher_below_alpha_threshold": "max_non_alpha_words_ratio",
    "gopher_enough_stop_words": "min_stop_words", "duplicate_paragraphs": "dup_para_frac",
    "duplicate_paragraph_characters": "dup_para_char_frac", "dup_line_frac": "dup_line_frac", "dup_line_char_frac": "dup_line_char_frac",
    "line_punct_ratio": "line_punct_thr", "short_line_ratio": "short_line_thr", "char_dup_ratio": "char_duplicates_ratio",
    "list_ratio": "new_line_ratio", "c4_too_few_sentences": "min_num_sentences",
}  # fmt: skip
OFF: dict[str, dict[str, Any]] = {
    "GopherQualityFilter": dict.fromkeys(ARGUMENTS[name] for name in FILTERS["GopherQualityFilter"]),
    "GopherRepetitionFilter": {
        **dict.fromkeys(("dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac")),
        **dict.fromkeys(("top_n_grams", "dup_n_grams"), ()),
    },
    "C4QualityFilter": {},
    "FineWebQualityFilter": {"line_punct_thr": -1, "short_line_thr": 2, "char_duplicates_ratio": 2, "new_line_ratio": 1e9},
}


def words_of(language: str) -> Callable[[str], list[str]]:
    """datatrove's words of a text."""
    text: Any = importlib.import_module("datatrove.utils.text")
    return lambda piece: list(text.split_into_words(piece, CODES[language]))


def reason(name: str, text: str, language: str, **changes: Any) -> str:
    """Why a filter drops a text, or an empty string."""
    filters: Any = importlib.import_module("datatrove.pipeline.filters")
    document: Any = importlib.import_module("datatrove.data").Document
    if name == "GopherQualityFilter":
        changes = {"stop_words": sorted(STOP_WORDS[language]), **changes}
    result = getattr(filters, name)(language=CODES[language], **changes).filter(document(text, "x"))
    return result[1] if isinstance(result, tuple) else ""


def _change(rule: str, limit: float) -> dict[str, Any]:
    """The filter's argument that sets one rule's threshold; Gopher's switch a rule off at 0, so the smallest number stands for it."""
    if rule.startswith("top_") or rule.startswith("duplicated_"):
        return {"top_n_grams" if rule.startswith("top_") else "dup_n_grams": ((int(rule.split("_")[1]), limit),)}
    return {ARGUMENTS[rule]: limit or (5e-324 if rule.startswith(("gopher", "dup")) else limit)}


def disagreement(rule: str, text: str, language: str, figure: float) -> str:
    """Empty when the filter keeps the text at a threshold of exactly `figure` and drops it at the next number; what it did otherwise."""
    name = next(name for name, rules in FILTERS.items() if rule in rules)
    below = BY_NAME[rule].fails == "below"
    beyond = figure + 1 if rule == "c4_too_few_sentences" else math.nextafter(figure, math.inf if below else -math.inf)
    kept = reason(name, text, language, **{**OFF[name], **_change(rule, figure)})
    dropped = reason(name, text, language, **{**OFF[name], **_change(rule, beyond)})
    # Two signs share one threshold; there the other sign may speak first.
    other = {"gopher_too_many_hashes": "gopher_too_many_ellipsis", "gopher_too_many_ellipsis": "gopher_too_many_hashes"}.get(rule, "")
    if kept and kept != other and (figure or not below):
        return f"{rule}: {kept} at {figure!r}"
    return f"{rule}: not dropped beyond {figure!r}" if not dropped and (figure or below) else ""


def figures(text: str, language: str, split: Callable[[str], list[str]]) -> dict[str, float]:
    """What our rules measure with these words, but for the two that are found or not, and the sentences of a text where one is."""
    words = Words(text, language, split)
    found = bool(BY_NAME["c4_lorem_ipsum"].measure(words) or BY_NAME["c4_curly_bracket"].measure(words))
    left_out = ("c4_lorem_ipsum", "c4_curly_bracket", "c4_too_few_sentences" if found else "")
    names = [name for rules in FILTERS.values() for name in rules if name not in left_out]
    return {name: float(BY_NAME[name].measure(words)) for name in names}


def main() -> None:
    """Measure the golden texts again."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for row in golden["texts"]:
        text, language = row["text"], row["language"]
        split = words_of(language)
        row["words"] = {piece: split(piece) for piece in (text, *dict.fromkeys(map(str.strip, text.splitlines())))}
        row["figures"] = figures(text, language, split)
        row["reasons"] = {name: reason(name, text, language) for name in FILTERS}
        if problems := list(filter(None, (disagreement(rule, text, language, value) for rule, value in row["figures"].items()))):
            sys.exit(f"{text[:40]!r}: {problems}")
    golden["versions"] = {name: importlib.metadata.version(name) for name in ("datatrove", "spacy", "pyvi")}
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in golden["texts"])
    GOLDEN.write_text(f'{{"versions": {json.dumps(golden["versions"])},\n"texts": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
