"""Figures with their units, as a person reads them. A no-break space keeps a figure and its unit on one line."""

from __future__ import annotations

import datetime

from luyen.core.plural import noun

JOIN = "\u00a0"


def whole(value: float | None) -> str:
    """12345 -> "12,345"; from a million on in words with three digits."""
    if value is None:
        return "–"
    for limit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= limit:
            return f"{_three_digits(value / limit)}{JOIN}{name}"
    return f"{value:,.0f}"


def _three_digits(value: float) -> str:
    """1.234 -> "1.23", 12.3 -> "12.3", 3.1 -> "3.1", 1234 -> "1,234"."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if digits else shown


def counted(value: float | None, singular: str, plural: str = "") -> str:
    """3, "page" -> "3 pages"."""
    return f"{whole(value)} {noun(value, singular, plural)}"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "–"
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= limit:
            return f"{_three_digits(value / limit)}{JOIN}{unit}"
    return f"{value:,.0f}{JOIN}B"


def duration(seconds: float | None) -> str:
    """0.42 -> "0.4 s", 292 -> "4 min 52 s", 3780 -> "1 h 03 min"."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f}{JOIN}s" if seconds >= 0.05 else "under 0.1 s"
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds}{JOIN}s"
    if whole_seconds < 3600:
        return f"{whole_seconds // 60}{JOIN}min{JOIN}{whole_seconds % 60:02d}{JOIN}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{JOIN}h{JOIN}{minutes % 60:02d}{JOIN}min"


def foretold(expected: float | None, measured: float | None, shown: str) -> str:
    """A prediction beside what was measured: "29 % less than the 1 min 26 s expected"; `shown` is the prediction with its unit."""
    if not expected:
        return ""
    if not measured:
        return f"{shown} expected"
    if abs(measured / expected - 1) < 0.05:
        return f"as expected ({shown})"
    return f"{_times(measured / expected)} the {shown} expected"


def _times(ratio: float) -> str:
    """0.71 -> "29 % less than", 1.3 -> "30 % more than", 2.4 -> "2.4 times"."""
    if ratio >= 2:
        return f"{_three_digits(ratio)} times"
    return f"{abs(100 * (ratio - 1)):.0f}{JOIN}% {'less' if ratio < 1 else 'more'} than"


def share(value: float | None, digits: int = 1) -> str:
    """0.641 -> "64.1 %"."""
    return "–" if value is None else f"{100 * value:.{digits}f}{JOIN}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with a fixed number of digits."""
    return "–" if value is None else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """A number of unknown size, four significant digits, no exponent where it can be avoided."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return whole(value)
    return f"{value:,.4g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.3g}"


def carbon(grams: float | None) -> str:
    """Grams of CO2; nothing where they are not known."""
    if grams is None:
        return ""
    return f"{grams:.3g}{JOIN}g CO2" if grams < 1000 else f"{grams / 1000:.3g}{JOIN}kg CO2"


def energy(joules: float | None) -> str:
    """Joules as watt-hours."""
    if joules is None:
        return "–"
    return f"{joules / 3600:.3g}{JOIN}Wh" if joules < 3.6e6 else f"{joules / 3.6e6:.3g}{JOIN}kWh"


def moment(value: object) -> str:
    """A time of an event (ISO text or seconds since 1970) as "2026-11-21 09:02 UTC"; "" when it is none."""
    try:
        if isinstance(value, str):
            when = datetime.datetime.fromisoformat(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            when = datetime.datetime.fromtimestamp(value, datetime.UTC)
        else:
            return ""
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return when.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""


def clip(value: str, limit: int) -> str:
    """At most `limit` characters, and how many were cut."""
    return value if len(value) <= limit else f"{value[:limit].rstrip()} … (cut: {whole(len(value) - limit)} more characters)"


def joined(items: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
