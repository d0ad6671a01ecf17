"""The template for Python's reference pages, on pages as different versions of pydoc print them."""

import pytest

from luyen.core.records import Document
from luyen.synthesis.question_answer import TEMPLATES
from luyen.tasks.entries import read_entries
from luyen.tasks.template import load_template

ONE_LINE = "Wrapper(width=70, *, tabsize=8)"
LINES = "Wrapper(\n    width=70,\n    *,\n    tabsize=8\n)"  # since Python 3.13


@pytest.mark.parametrize("constructor", [ONE_LINE, LINES, LINES + " -> None"])
def test_a_class_is_described_by_what_follows_its_constructor(constructor: str) -> None:
    text = f"# texts\n\nWrap texts.\n\n## Classes\n\n### class Wrapper(builtins.object)\n\n{constructor}\n\nObject for wrapping text.\n\n"
    text += "Methods defined here:\n\nfill(self, text)\n    Fill one paragraph.\n"
    reading = read_entries(
        [Document("texts", text, "http://pydoc.localhost/texts.html", "texts")], load_template("python_reference", TEMPLATES)
    )
    assert [(entry.kind, entry.name, entry.description) for entry in reading.entries] == [
        ("module", "texts", "Wrap texts."),
        ("class", "texts.Wrapper", "Object for wrapping text."),
        ("method", "texts.Wrapper.fill", "Fill one paragraph."),
    ]
    assert reading.entries[1].fields["arguments"] == constructor.removeprefix("Wrapper").removesuffix(" -> None")
