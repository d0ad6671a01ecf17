"""Vietnamese text in the font encodings of the years before Unicode, read as Latin: TCVN3 (ABC) and VNI.

A page written with such a font shows `ViÖt Nam` (TCVN3) or `Vieät Nam` (VNI) to anything that reads it as Windows-1252.
TCVN3 has one byte a letter and no accented capitals (fonts named ...H drew them); VNI writes base letter, then mark.

The tables follow TCVN 5712:1993 (VN3) and VNI Software's font layout; the TCVN3 half is checked in the tests against an independent codec.
"""

from __future__ import annotations

import re
import unicodedata

_TCVN3 = dict(
    zip(
        "¡¢£¤¥¦§¨©ª«¬\xad®"
        "µ¶·¸¹»¼½¾ÆÇÈÉÊËÌÎÏÐÑÒÓÔÕÖ×ØÜÝÞßáâãäåæçèéêëìíîïñòóôõö÷øùúûüýþ",
        "ĂÂÊÔƠƯĐăâêôơưđ"
        "àảãáạằẳẵắặầẩẫấậèẻẽéẹềểễếệìỉĩíịòỏõóọồổỗốộờởỡớợùủũúụừửữứựỳỷỹýỵ",
        strict=True,
    )
)  # fmt: skip
_TCVN3_TABLE = str.maketrans(_TCVN3)

_TONES = {"ù": "\u0301", "ø": "\u0300", "û": "\u0309", "õ": "\u0303", "ï": "\u0323"}
_CIRCUMFLEX = {"â": "", "á": "\u0301", "à": "\u0300", "å": "\u0309", "ã": "\u0303", "ä": "\u0323"}
_BREVE = {"ê": "", "é": "\u0301", "è": "\u0300", "ú": "\u0309", "ü": "\u0303", "ë": "\u0323"}


def _vni_table() -> dict[str, str]:
    table = {"ñ": "đ", "ô": "ơ", "ö": "ư", "æ": "ỉ", "ó": "ĩ", "ò": "ị", "î": "ỵ"}
    for base in "aeiouyôö":
        letter = {"ô": "ơ", "ö": "ư"}.get(base, base)
        table |= {base + mark: letter + tone for mark, tone in _TONES.items()}
    for base in "aeo":
        table |= {base + mark: base + "\u0302" + tone for mark, tone in _CIRCUMFLEX.items()}
    table |= {"a" + mark: "a\u0306" + tone for mark, tone in _BREVE.items()}
    both = {old: unicodedata.normalize("NFC", new) for old, new in table.items()}
    for old, new in list(both.items()):
        both[old.upper()] = new.upper()
        both[old[0].upper() + old[1:]] = new[0].upper() + new[1:]  # "Ñöùc" mixes cases within a word
    return both


_VNI = _vni_table()
_VNI_PATTERN = re.compile("|".join(sorted(map(re.escape, _VNI), key=len, reverse=True)))

# One Vietnamese syllable without its tone: initial, glide and nucleus, final (Thompson, A Vietnamese Reference Grammar, ch. 2).
_SYLLABLE = re.compile(
    r"(?:ngh|ng|nh|gh|gi|kh|ph|qu|th|tr|ch|[bcdđghklmnprstvx])?"
    r"(?:uyê|oai|oay|oeo|uây|uôi|ươi|ươu|iêu|yêu|uya|uyu|ai|ao|au|ay|âu|ây|eo|êu|ia|iê|iu|oa|oă|oe|oi|ôi|ơi|oo|ua|uâ|uê|ui|uô|uơ|uy|ưa|ưi|ươ|ưu|yê"
    r"|[aăâeêioôơuưy])(?:ch|ng|nh|[cmnpt])?"
)
_TONE_MARKS = {ord(mark): None for mark in "\u0300\u0301\u0303\u0309\u0323"}
_WORD = re.compile(r"[^\W\d_]+(?:[\xad÷×¡-¾]+[^\W\d_]*)*|[¡-¾\xad÷×]+[^\W\d_]+")
_UNICODE_VIETNAMESE = re.compile("[\u1ea0-\u1ef9ăđơưĂĐƠƯ]")
_LATIN_SUPPLEMENT = re.compile("[\xa1-\xff]")


def convert_tcvn3(text: str) -> str:
    """Text that was TCVN3 (ABC) bytes read as Windows-1252, as Unicode."""
    return text.translate(_TCVN3_TABLE)


def convert_vni(text: str) -> str:
    """Text that was VNI bytes read as Windows-1252, as Unicode."""
    return _VNI_PATTERN.sub(lambda match: _VNI[match[0]], text)


def is_syllable(word: str) -> bool:
    """Whether a word could be a Vietnamese syllable by its letters (tone ignored)."""
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFD", word.lower()).translate(_TONE_MARKS))
    return _SYLLABLE.fullmatch(plain) is not None


CONVERTERS = {"tcvn3": convert_tcvn3, "vni": convert_vni}


def detect(text: str) -> str | None:
    """`tcvn3` or `vni` when the text is Vietnamese in that encoding, else None.

    It is when the words with letters of the Latin supplement become Vietnamese syllables by the conversion (four of five), there
    are at least five different ones, they are a seventh of all words, and the text has hardly any Vietnamese letters as it stands.
    French, German or Portuguese words do not turn into syllables, and Vietnamese in Unicode fails the last test.
    """
    if len(_LATIN_SUPPLEMENT.findall(text[:20_000])) < 8:
        return None
    sample = text[:20_000]
    words = _WORD.findall(sample)
    if len(_UNICODE_VIETNAMESE.findall(sample)) * 20 > len(words):
        return None
    marked = {word for word in words if _LATIN_SUPPLEMENT.search(word)}
    if len(marked) < 5 or sum(word in marked for word in words) * 7 < len(words):
        return None
    scores = {
        name: sum(is_syllable(converted) and bool(_vietnamese_letter(converted)) for converted in map(converter, marked)) / len(marked)
        for name, converter in CONVERTERS.items()
    }
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= 0.8 else None


def _vietnamese_letter(word: str) -> bool:
    return any(character > "\x7f" for character in word)


def convert(text: str) -> tuple[str, str | None]:
    """The text in Unicode and the name of the encoding it was in, or unchanged and None."""
    name = detect(text)
    return (CONVERTERS[name](text), name) if name else (text, None)
