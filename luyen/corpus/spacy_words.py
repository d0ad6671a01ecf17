"""Words as spaCy 3's rules cut them, for the measures that datatrove takes on them; without spaCy, and remembered piece by piece.

A piece between white space loses signs at its front and back, in turns; what is left is kept when it is an address or a known short form
and cut at signs inside otherwise. From spacy/lang/punctuation.py and char_classes.py (MIT). Its lists of short forms are left out but for
English contractions and the commonest abbreviations, and so is pyvi, which joins Vietnamese syllables by a trained model: how often
the decisions agree all the same is in bench/results/curation.json.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

from luyen.corpus.words import Pieces, split_words

_PUNCT = r"…… … , : ; ! \? ¿ ؟ ¡ \( \) \[ \] \{ \} < > _ \# \* & 。 ？ ！ ， 、 ； ： ～ · । ، ۔ ؛ ٪"
_QUOTES = r"' \" ” “ ` ‘ ´ ’ ‚ , „ » « 「 」 『 』 （ ） 〔 〕 【 】 《 》 〈 〉 ⟦ ⟧"
_CURRENCY = r"\$ £ € ¥ ฿ US\$ C\$ A\$ ₽ ₴ ₫ ₩ ₹ ₿"
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb "
    "GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб "
    "ТБ тб"
)
_NOT = [
    "ai", "are", "ca", "can", "could", "did", "do", "does", "had", "has", "have", "is", "might", "must", "need", "ought", "sha", "should",
    "was", "were", "wo", "would",
]  # fmt: skip
_SUBJECTS = ["i", "you", "he", "she", "it", "we", "they", "who", "what", "when", "where", "why", "how", "there", "that", "this"]
_TAILS = ("'m", "'ll", "'ve", "'re", "'d", "'s")
_ABBREVIATIONS = [
    "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "Jr.", "Sr.", "St.", "vs.", "v.s.", "e.g.", "i.e.", "E.g.", "I.e.", "a.m.", "p.m.", "Inc.",
    "Ltd.", "Corp.", "Co.", "Gen.", "Jan.", "Feb.", "Mar.", "Apr.", "Jun.", "Jul.", "Aug.", "Sep.", "Sept.", "Oct.", "Nov.", "Dec.", "No.",
]  # fmt: skip
_RUSSIAN = ["т.е.", "т.д.", "т.п.", "т.к.", "см.", "др.", "пр.", "гг.", "руб.", "стр.", "г-жа", "г-н"]
_FACES = frozenset([":*", "):", "(:", ":)", ":(", ";)", ":D", ":P", ":/", "=)", ":]", ":-)", ":-(", ";-)", "''"])
_LETTER = r"A-Za-z0-9\u00a1-\uffff"
_URL = re.compile(
    rf"(?:[\w+\-.]{{2,30}}://|mailto:)?(?:[^\s@/]{{1,64}}@)?(?:\d{{1,3}}(?:\.\d{{1,3}}){{3}}|(?:[{_LETTER}][{_LETTER}_-]{{0,63}}\.)+"
    r"[a-z\u00a1-\uffff]{2,63})(?::\d{2,5})?(?:[/?#]\S*)?"
)
LONGEST_PIECE = 2000
"""Longer pieces without a space are cut as our own words are: the rules below take quadratic time."""
_LONGEST_SUFFIX = 16
_INSIDE = re.compile(r"[^\w'’\"()\[\]]")
"""Every sign that a word is cut at inside is one of these."""
_UNIT_OR_S = re.compile("[0-9'’]")
"""Nothing that ends in a letter is cut off at the back without one of these before it."""


def _class_of(test: str) -> str:
    """The body of a character class: letters of the basic plane that are lower or upper case; letters without case are both."""
    chosen = [
        point for point in range(0x41, 0xFFDD)
        if unicodedata.category(chr(point)) in {"lower": ("Ll", "Lo"), "upper": ("Lu", "Lo")}[test]
    ]  # fmt: skip
    runs = [list(run) for _, run in itertools.groupby(enumerate(chosen), lambda pair: pair[1] - pair[0])]
    return "".join(f"\\u{run[0][1]:04x}-\\u{run[-1][1]:04x}" for run in runs)


def _icons() -> str:
    points = [point for point in range(0xA6, 0x1FAFF) if unicodedata.category(chr(point)) == "So"]
    runs = [list(run) for _, run in itertools.groupby(enumerate(points), lambda pair: pair[1] - pair[0])]
    return "".join(f"\\U{run[0][1]:08x}-\\U{run[-1][1]:08x}" for run in runs)


@functools.cache
def _patterns(english: bool) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What is cut off at the front, at the back, and inside."""
    lower, upper, icons, alpha = _class_of("lower"), _class_of("upper"), _icons(), r"[^\W\d_]"
    quotes = "".join(_QUOTES.split())
    signs = "".join(sign for sign in _PUNCT.split() if sign != "……") + quotes + "—–" + icons
    money = "|".join(_CURRENCY.split())
    front = ["[§%=" + signs + "]", r"\+(?![0-9])", r"\.\.+", money]
    back = [
        "[" + signs + "]", r"\.\.+", "['’][sS]", r"(?<=[0-9])\+", r"(?<=°[FfCcKk])\.",
        f"(?<=[0-9])(?:{money})", f"(?<=[0-9])(?:{'|'.join(_UNITS.split())})",
        rf"(?<=[0-9{lower}%²\-\+{''.join(_PUNCT.split())}(?:{quotes})|])\.", f"(?<=[{upper}][{upper}])\\.",
    ]  # fmt: skip
    before_hyphen = r"(?<=(?!_)\w)" if english else f"(?<={alpha})"
    inside = [
        r"\.\.+", "[…" + icons + "]", r"(?<=[0-9])[+\-\*^](?=[0-9-])", rf"(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])",
        f"(?<={alpha}),(?={alpha})", f"{before_hyphen}(?:-|–|—|--|---|——|~)(?={alpha})", f"(?<=(?!_)\\w)[:<>=/](?={alpha})",
    ]  # fmt: skip
    joined = ("|".join(front), "|".join(piece + "$" for piece in back), "|".join(inside))
    return re.compile(joined[0]), re.compile(joined[1]), re.compile(joined[2])


@functools.cache
def _known(english: bool) -> dict[str, tuple[str, ...]]:
    """English contractions and abbreviations, as they are cut."""
    found: dict[str, tuple[str, ...]] = {word: (word,) for word in [*_FACES, *_RUSSIAN, *(f"{chr(97 + n)}." for n in range(26))]}
    if not english:
        return found
    found |= {word: (word,) for word in _ABBREVIATIONS}
    for sign in "'’":
        pairs = [(verb, f"n{sign}t") for verb in _NOT] + [(word, tail.replace("'", sign)) for word in _SUBJECTS for tail in _TAILS]
        for first, second in pairs:
            for cased in (first, first.capitalize()):
                found[cased + second] = (cased, second)
    bare = [(verb, "nt") for verb in _NOT] + [(word, tail[1:]) for word in _SUBJECTS[:7] for tail in _TAILS[2:5]] + [("i", "m")]
    found |= {cased + second: (cased, second) for first, second in bare for cased in (first, first.capitalize())}
    found = {word: parts for word, parts in found.items() if word.lower() not in ("were", "shed", "here")}
    return {**found, "cannot": ("can", "not"), "Cannot": ("Can", "not"), "let's": ("let", "'s"), "Let's": ("Let", "'s")}


def _affixes(piece: str, english: bool) -> tuple[list[str], str, list[str]]:
    """What comes off at the front and, from the end, at the back, and what is left."""
    prefix, suffix, _ = _patterns(english)
    known = _known(english)
    front: list[str] = []
    back: list[str] = []
    before = None
    while piece and piece != before and not piece.isalpha() and piece not in known:
        before = piece
        if match := prefix.match(piece):
            front.append(match[0])
            piece = piece[match.end() :]
            if piece in known:
                break
        if not piece or (piece[-1].isalpha() and not _UNIT_OR_S.search(piece, max(0, len(piece) - _LONGEST_SUFFIX))):
            continue
        # A row of dots may be long; anything else that is cut off at the back is short, and looking for it there costs the same for all.
        start = 0 if piece.endswith("..") else max(0, len(piece) - _LONGEST_SUFFIX)
        if match := suffix.search(piece, start):
            back.append(match[0])
            piece = piece[: match.start()]
    return front, piece, back


def _split(piece: str, english: bool) -> tuple[str, ...]:
    if piece.isalpha():
        return _known(english).get(piece, (piece,))
    if len(piece) > LONGEST_PIECE:
        return tuple(split_words(piece))
    front, middle, back = _affixes(piece, english)
    if middle in _known(english):
        parts = list(_known(english)[middle])
    elif not middle or not _INSIDE.search(middle) or ("." in middle and _URL.fullmatch(middle)):
        parts = [middle] if middle else []
    else:
        parts, offset = [], 0
        for match in _patterns(english)[2].finditer(middle):
            if match.start() == 0:
                continue
            parts += [middle[offset : match.start()], match[0]]
            offset = match.end()
        parts = [part for part in [*parts, middle[offset:]] if part]
    return tuple(_with_faces([*front, *parts, *reversed(back)]))


def _with_faces(parts: list[str]) -> list[str]:
    """Two signs that are a face together are one word."""
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1] + part in _FACES:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


ENGLISH: Pieces[tuple[str, ...]] = Pieces(functools.partial(_split, english=True))
OTHERS: Pieces[tuple[str, ...]] = Pieces(functools.partial(_split, english=False))


def spacy_words(text: str, language: str = "en") -> list[str]:
    """The words and signs of a text, nearly as spaCy's rules for English, or those that languages share, cut it."""
    return list(itertools.chain.from_iterable((ENGLISH if language == "en" else OTHERS).of(text)))
