"""Personal data replaced by `<kind>`: e-mail, phone, card, cccd and cmnd (Vietnam), mst, inn, snils and passport (Russia), ip.

A pattern only proposes; a check digit, an issuer's prefix, a numbering plan or a key word beside it decides. What stays:
- addresses at the reserved example domains (RFC 2606) and hosts without a dot;
- IP addresses that are not globally routable (private, loopback, documentation), those whose four numbers all have one digit
  (`1.2.3.4` is more often a version than a host) or count up (`123.45.67.89`), and any dotted number behind the word version;
- numbers inside longer numbers, decimals, identifiers or words.
Every pattern is bounded and starts only at the edge of a word, so that a text of one 400,000-letter word costs linear time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import phonenumbers
import stdnum.luhn
import stdnum.ru.inn
import stdnum.vn.mst

Kind = Literal["email", "card", "snils", "inn", "passport", "cccd", "cmnd", "mst", "phone", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_REGIONS = {"vi": "VN", "ru": "RU", "en": "US"}
_EXAMPLE_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org|edu))?|test|invalid|localhost)$", re.IGNORECASE)
# Issuers' prefixes: Visa, Mastercard, Amex, Mir, JCB, Discover, UnionPay, Diners, Napas (Vietnam).
_ISSUER = re.compile(
    r"(?:4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|220[0-4]\d{12,15}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}|3(?:0[0-5]|[68]\d)\d{11}|9704\d{12}(?:\d{3})?)"
)
_POWERS = frozenset(str(base**exponent + add) for base in (2, 10) for exponent in range(30, 70) for add in (-1, 0, 1))


def _near(word: str, number: str) -> re.Pattern[str]:
    """A number (group 1) at most a few words behind a key word."""
    return re.compile(rf"(?:{word})(?:[^\d\n]{{0,30}})(?<![\d.]){number}(?!\d|[.,]\d)", re.IGNORECASE)


def _is_email(text: str, context: str) -> bool:
    return "." in text.partition("@")[2] and not _EXAMPLE_DOMAIN.search(text.partition("@")[2])


def _is_card(text: str, context: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return _ISSUER.fullmatch(digits) is not None and stdnum.luhn.is_valid(digits) and digits not in _POWERS and len(set(digits)) > 1


def is_snils(digits: str) -> bool:
    """Check digits of a Russian SNILS, eleven digits: the weighted sum of the first nine, modulo 101, 100 written as 00."""
    total = sum(int(digit) * weight for digit, weight in zip(digits[:9], range(9, 0, -1), strict=True))
    return len(digits) == 11 and total % 101 % 100 == int(digits[9:])


def is_cccd(digits: str) -> bool:
    """Form of a Vietnamese citizen number (Decree 137/2015, article 13): province 001-096, century and sex, year, six more digits."""
    return len(digits) == 12 and 1 <= int(digits[:3]) <= 96


def _is_phone(text: str, context: str) -> bool:
    region = _REGIONS.get(context)
    if not text.startswith("+") and region is None:
        return False
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return False
    return bool(phonenumbers.is_valid_number(number))


def _is_ip(text: str, context: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        plain = text.replace(".", "")
        return address.is_global and plain not in "12345678901234567890" and len(plain) > 4
    return address.is_global and address in _GLOBAL_UNICAST and text.count(":") >= 3


_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def _digits(check: Callable[[str], bool]) -> Callable[[str, str], bool]:
    return lambda text, context: check(re.sub(r"\D", "", text))


def _is_mst(text: str, context: str) -> bool:
    return bool(stdnum.vn.mst.is_valid(text))


def _always(text: str, context: str) -> bool:
    return True


@dataclass(frozen=True)
class _Finder:
    kind: Kind
    hints: tuple[str, ...]
    """Of these (lower case) the text must hold one for the pattern to be worth trying."""
    pattern: re.Pattern[str]
    check: Callable[[str, str], bool]
    languages: tuple[str, ...] = ()


def _alone(pattern: str, before: str = r"\w.,+/-", after: str = r"\w/-") -> re.Pattern[str]:
    """A pattern (group 1) that is no part of a longer number, decimal, identifier or path."""
    return re.compile(rf"(?<![{before}])({pattern})(?![{after}]|[.,]\d)")


_PASSPORT = ("паспорт", "passport", "серия")
_CITIZEN = ("cccd", "căn cước", "định danh", "cmnd", "cmtnd", "chứng minh")
_EMAIL = _alone(r"[A-Za-z0-9][\w.+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5}", r"\w.+/:-", r"\w@")
_CARD = _alone(r"\d{4}([ -])\d{4}\2\d{4}\2\d{1,7}|3\d{3}([ -])\d{6}\3\d{4,5}|\d{13,19}", r"\w.,+/-", r"\w-")
_IPV4 = re.compile(r"(?<![\w.,:/-])(\d{1,3}(?:\.\d{1,3}){3})(?![\w-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w.:])((?:[0-9A-Fa-f]{1,4}:{1,2}){3,7}[0-9A-Fa-f]{1,4})(?![\w:]|\.\d)")
_FINDERS: tuple[_Finder, ...] = (
    _Finder("email", ("@",), _EMAIL, _is_email),
    _Finder("snils", ("снилс", "snils"), _near("СНИЛС|SNILS", r"(\d{11})"), _digits(is_snils)),
    _Finder("inn", ("инн", "inn"), _near(r"\bИНН|\bINN", r"(\d{12}|\d{10})"), _digits(stdnum.ru.inn.is_valid)),
    _Finder("passport", _PASSPORT, _near("|".join(_PASSPORT), r"(\d{2} ?\d{2} ?(?:№|номер|N)? ?\d{6})"), _always),
    _Finder("passport", ("hộ chiếu", "passport"), _near(r"hộ chiếu|passport", r"([A-Z]\d{7,8})"), _always),
    _Finder("cccd", _CITIZEN, _near("|".join(_CITIZEN), r"(\d{12}|\d{3} \d{3} \d{3} \d{3})"), _digits(is_cccd)),
    _Finder("cmnd", _CITIZEN, _near(r"CMND|CMTND|chứng minh", r"(\d{9}|\d{3} \d{3} \d{3})"), _always),
    _Finder("mst", ("mst", "mã số thuế"), _near(r"\bMST\b|mã số thuế", r"(\d{10}(?:-\d{3})?)"), _is_mst),
)
# Tried in this order where a number begins. National phone forms only in their own language: ten digits mean other things elsewhere.
_NUMBERS: tuple[_Finder, ...] = (
    _Finder("snils", (), _alone(r"\d{3}-\d{3}-\d{3}[ -]\d{2}", r"\w.-", r"\w-"), _digits(is_snils)),
    _Finder("card", (), _CARD, _is_card),
    _Finder("phone", (), _alone(r"\+\d(?:[ .()-]{0,2}\d){7,14}", r"\w.+", r"\w-"), _is_phone),
    _Finder("phone", (), _alone(r"0\d{9}|0\d{2,3}([ .-])\d{3}\2\d{3,4}|0\d{2} \d{4} \d{4}"), _is_phone, ("vi",)),
    _Finder("phone", (), _alone(r"8[ -]?\(?\d{3}\)?[ -]?\d{3}[ -]?\d{2}[ -]?\d{2}"), _is_phone, ("ru",)),
    _Finder("phone", (), _alone(r"\(\d{3}\) ?\d{3}-\d{4}|\d{3}([.-])\d{3}\2\d{4}"), _is_phone, ("en",)),
    _Finder("ip", (), _IPV4, _is_ip),
    _Finder("ip", (), _IPV6, _is_ip),
)
# Where a number of five or more digits, or an IPv6 address, can begin.
_START = re.compile(r"(?<![\w.+])(?:[+(]?\d(?:[ .()-]{0,2}\d){4}|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{2})")
_VERSION = re.compile(r"(?:\bv|\bver|versions?|phiên bản|версия|версии|release)[ .:=]*\Z", re.IGNORECASE)


def mask(text: str, language: str = "", kinds: Iterable[Kind] = KINDS) -> tuple[str, dict[str, int]]:
    """The text with personal data replaced by `<kind>`, and how many of each kind were replaced.

    `language` (ISO 639-1) decides which national phone numbers are looked for; those written with + are found in every language.
    """
    chosen = frozenset(kinds)
    counts: dict[str, int] = {}
    lower = text.lower() if chosen else ""
    for finder in _FINDERS:
        if finder.kind in chosen and any(hint in lower for hint in finder.hints):
            text = _replace(text, ((finder, match) for match in finder.pattern.finditer(text)), language, counts)
    numbers = [finder for finder in _NUMBERS if finder.kind in chosen and (not finder.languages or language in finder.languages)]
    if numbers:
        text = _replace(text, _numbers(text, numbers, language), language, counts)
    return text, counts


def _numbers(text: str, finders: list[_Finder], language: str) -> Iterator[tuple[_Finder, re.Match[str]]]:
    for start in _START.finditer(text):
        for finder in finders:
            match = finder.pattern.match(text, start.start())
            if match and finder.check(match[1], language):
                yield finder, match
                break


def _replace(text: str, found: Iterable[tuple[_Finder, re.Match[str]]], language: str, counts: dict[str, int]) -> str:
    pieces, end = [], 0
    for finder, match in found:
        start, stop = match.span(1)
        if start < end or not finder.check(match[1], language):
            continue
        if finder.kind in ("ip", "phone") and _VERSION.search(text, max(0, start - 20), start):
            continue
        pieces += [text[end:start], f"<{finder.kind}>"]
        end = stop
        counts[finder.kind] = counts.get(finder.kind, 0) + 1
    return "".join([*pieces, text[end:]]) if pieces else text
