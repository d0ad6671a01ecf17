"""One place that knows how a count and its noun are written: "1 row", "2 rows", "12,345 rows"."""

from __future__ import annotations


def noun(count: float | None, singular: str, plural: str = "") -> str:
    """The noun beside a count; `plural` where it does not just end in s."""
    return singular if count == 1 else plural or f"{singular}s"


def exactly(count: int, singular: str, plural: str = "") -> str:
    """A count in all its digits with its noun: 1, "row" -> "1 row"; 12345, "query", "queries" -> "12,345 queries"."""
    return f"{count:,} {noun(count, singular, plural)}"
