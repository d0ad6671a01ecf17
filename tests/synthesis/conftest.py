"""Small pages in the form that curation gives, and a template in two groups."""

from pathlib import Path

import pytest

from luyen.core.records import Document

WORDS = ["apple", "bridge", "candle", "desk", "engine", "forest", "garden", "harbour", "island", "jungle"]
TEMPLATE = """
version: 1
document: [{name: module, source: url, pattern: '(\\w+)\\.html$'}]
entries:
  - {kind: function, pattern: '^(?P<bare>\\w+)(?P<arguments>\\(.*\\))$', name: '{module}.{bare}'}
questions:
  what:
    of: [function]
    ask: ['What is {name}?', 'Explain {name}.', '{name}?']
    held_out: ['Describe {name}.', 'And {name}?']
    answer: '{description}'
  reverse: {of: [function], unique: description, ask: ['Which does this: {topic}?'], held_out: ['Name it: {topic}.'], answer: '{name}'}
  call:
    of: [function]
    ask: ['Call {name}.']
    held_out: ['How to call {name}?']
    answer: '{name}{arguments}'
    follow_up: ['How do I call it?']
conversation: [{ask: ['Hello!'], answer: 'Good day.'}]
unknown: {enabled: false, count: 3, answer: 'I do not know {name}.'}
admissions: ['do not know']
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.yaml"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


@pytest.fixture
def documents() -> list[Document]:
    pages = []
    for module in ("tools", "works"):
        lines = [f"# {module}"]
        for word in WORDS:
            lines.append(f"{word}_{module}(x, size=1)\n    Make a new {word} for the {module}.\n")
        lines.append("twin(x)\n    Both pages say exactly this.\n")
        pages.append(Document(id=module, text="\n\n".join(lines), url=f"http://pydoc.localhost/{module}.html", title=module))
    return pages
