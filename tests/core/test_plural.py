"""A count and its noun."""

from luyen.core.plural import exactly, noun
from luyen.report.wording import counted


def test_one_is_singular_and_nothing_else() -> None:
    assert [exactly(count, "row") for count in (0, 1, 2, 12345)] == ["0 rows", "1 row", "2 rows", "12,345 rows"]
    assert exactly(2, "query", "queries") == "2 queries" and noun(None, "page") == "pages"
    assert counted(1, "page") == "1 page" and counted(2, "query", "queries") == "2 queries"
