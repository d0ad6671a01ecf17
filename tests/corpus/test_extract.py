"""Main text: what must survive (entries of pydoc, code, headings, single letters) and what must go."""

import json
import pydoc
import time

import pytest

from luyen.corpus.extract import charset, decode, extract, extract_html


def page(body: str) -> str:
    filler = "<p>" + "A sentence that makes this the main content of the page. " * 8 + "</p>"
    return f"<html><head><title>T</title></head><body><main>{filler}{body}</main></body></html>"


def tail(body: str) -> list[str]:
    return extract_html(page(body)).text.split("\n")[2:]


@pytest.fixture(scope="module")
def pydoc_page() -> str:
    """The page of json as `python -m pydoc` serves it, with the server's banner."""
    banner = """<div style='float:left'>Python 3.11.7 [main, GCC]<br>Linux-6</div>
    <div style='float:right'><a href="index.html">Module Index</a> : <a href="topics.html">Topics</a></div><div style="clear:both">"""
    html = pydoc.html.page("package json", banner + pydoc.html.document(json, "json") + "</div>")
    return extract_html(html).text


def test_pydoc_entries_are_term_lines_with_an_indented_body_and_a_blank_line_between(pydoc_page: str) -> None:
    lines = pydoc_page.split("\n")
    start = next(
        index for index, line in enumerate(lines) if line.startswith(("dumps(obj, *, skipkeys=False", "dumps( obj, *, skipkeys=False"))
    )
    assert lines[start - 1] == ""
    assert lines[start].endswith(("**kw)", "**kw )"))
    assert lines[start + 1] == "    Serialize ``obj`` to a JSON formatted ``str``."
    end = next(index for index in range(start + 1, len(lines)) if lines[index] and not lines[index].startswith("    "))
    assert lines[end].startswith(("load(fp, *", "load( fp, *")) and lines[end - 1] == "" and lines[end - 2].startswith("    ")
    doc = "\n".join(line.removeprefix("    ") for line in lines[start + 1 : end]).strip()
    assert doc == "\n".join(line.rstrip() for line in pydoc.getdoc(json.dumps).split("\n"))


def test_pydoc_headings_and_navigation(pydoc_page: str) -> None:
    headings = [line for line in pydoc_page.split("\n") if line.startswith("#")]
    assert headings[0].startswith("# json")
    assert headings[1:4] == ["## Package Contents", "## Classes", "### class JSONDecodeError(builtins.ValueError)"]
    assert "## Functions" in headings and "## Data" in headings
    for gone in ("Module Index", "Topics", "GCC", "file:", "__init__.py", "Module Reference", "\nindex", "\xa0"):
        assert gone not in pydoc_page
    assert "    >>> import json" in pydoc_page  # indentation of examples
    assert "| object        | dict              |" in pydoc_page  # resiliparse alone loses "| " before a link
    assert all(not "\ue000" <= character <= "\uf8ff" for character in pydoc_page)


def test_headings_lists_code_and_tables() -> None:
    html = """<h2>Usage <a class="headerlink">¶</a></h2><ul><li>first thing of the list here<li>second thing of the list here</ul>
<pre><code class="language-python">
def f():
    return  1

f()</code></pre><table><tr><td>a</td><td>b</td></tr><tr><td></td><td>d</td></tr></table><p>end</p>"""
    lines = tail(html)
    assert lines[:2] == ["## Usage", ""]
    assert "  - first thing of the list here" in lines
    start = lines.index("```python")
    assert lines[start : start + 6] == ["```python", "def f():", "    return  1", "", "f()", "```"]
    assert "a | b" in lines and "d" in lines and lines[-1] == "end"


def test_term_lists_nest_and_close_by_themselves() -> None:
    html = "<dl><dt>outer<dd>text<dl><dt>inner</dt><dd>deep<br>second</dd></dl><dt>next<dd><pre>x = 1\n  y</pre></dl><p>after</p>"
    assert tail(html) == [
        "outer", "    text", "", "    inner", "        deep", "        second", "", "next", "",
        "    ```", "    x = 1", "      y", "    ```", "", "after",
    ]  # fmt: skip


def test_scripts_comments_and_navigation_go() -> None:
    html = """<html><body><nav><ul><li><a href=/>Home</a></ul></nav><script>document.write("<dt>evil")</script><!-- <h1>no</h1> -->
<style>h1 {color: red}</style><main><h1>Title</h1><p>The text of the page, long enough to be chosen as its main content.</p></main>
<footer>Imprint</footer></body></html>"""
    assert extract_html(html).text == "# Title\n\nThe text of the page, long enough to be chosen as its main content."


def test_links_to_files_go_and_the_word_stays() -> None:
    html = '<p>read file: <a href="file:/usr/lib/x.py">/usr/lib/x.py</a> and <a class=y HREF=file:z>z</a> or <a href="https://file:1/">web</a></p>'
    assert " ".join(tail(html)).split() == ["read", "file:", "and", "or", "web"]


def test_a_single_vietnamese_letter_between_tags_stays() -> None:
    assert "sống ở đây" in " ".join(tail("<p><b>sống</b> ở <i>đây</i> nhé</p>"))
    assert "sống ở đây" in " ".join(tail("<p><b>sống</b>&nbsp;<a href=x>ở</a>&nbsp;<i>đây</i></p>"))


def test_private_use_characters_of_a_page_are_not_taken_for_marks() -> None:
    lines = tail("<p>icon \ue000\ue011 here</p>")
    assert lines == ["icon here"] or lines == ["icon  here"]


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        ("Москва слезам не верит".encode("cp1251"), "text/html; charset=windows-1251", "Москва"),
        ('<meta charset="koi8-r">Москва слезам не верит'.encode("koi8-r"), "", "Москва"),
        ("Tiếng Việt".encode(), "text/html", "Tiếng"),
        (b"\xef\xbb\xbf" + "Tiếng Việt".encode(), "text/html; charset=latin-1", "Tiếng"),
        ("Tiếng Việt".encode("utf-16"), "", "Tiếng"),
        ("Tiếng Việt".encode(), "text/html; charset=no-such-thing", "Tiếng"),
        (("В чащах юга жил бы цитрус? Да, но фальшивый экземпляр! " * 5).encode("cp1251"), "", "чащах"),
    ],
)
def test_charset(body: bytes, content_type: str, expected: str) -> None:
    assert expected in decode(body, content_type)[0]


def test_legacy_vietnamese_without_charset_is_read_as_windows_1252() -> None:
    body = "Céng hßa x· héi chñ nghÜa ViÖt Nam. §éc lËp, tù do, h¹nh phóc. T«i yªu tiÕng n­íc t«i tõ khi míi ra ®êi".encode("cp1252")
    assert charset(body) == "windows-1252"


def test_plain_text_is_not_parsed() -> None:
    assert extract(b"a < b\n  <dt>", "text/plain").text == "a < b\n  <dt>"


@pytest.mark.parametrize(
    "piece",
    ["<dt", "<td class='title'>", "<dl>", "<script>", "<!--", "<pre>", "</dl>", "<a href='file:", "file:", "<file:", "&nbsp;", "<table>"],
)
def test_hostile_repetition_costs_linear_time(piece: str) -> None:
    started = time.process_time()
    extract_html(page(piece * (60_000 // len(piece))))
    assert time.process_time() - started < 4


@pytest.mark.parametrize(
    ("before", "piece", "after"),
    [
        ("<td ", "class=", ">"),
        ("<td class=", " ", ">"),
        ("<a ", "href=file:", "<b>"),
        ("<td ", "class=title ", "<b>"),
        ("<a href", " ", ">file:"),
    ],
)
def test_hostile_attributes_cost_linear_time(before: str, piece: str, after: str) -> None:
    started = time.process_time()
    extract_html(page(before + piece * (200_000 // len(piece)) + after))
    assert time.process_time() - started < 4


def test_damaged_html_gives_the_text_that_is_in_it_and_none_of_our_marks() -> None:
    lost = "<p>\ud800kept".encode("utf-8", "surrogatepass")
    for body, text in (
        (b"", ""),
        (b"\x00\xff\xfe<", "\xff\xfe<"),
        (b"<html><pre>", "```\n```"),
        (b"<dl><dd>kept</dl></dd></pre>" * 2, "kept\nkept"),
        (b"kept</pre></pre> and <pre>code</pre> more</pre>", "kept and\n```\ncode\n```\nmore"),
        (b"<li>kept</dt></dl></h3><dt><li></li>more</ul>", "kept\nmore"),
        (lost, "\xed \u20ackept"),
    ):
        lines = [line.strip(" -") for line in extract(body).text.split("\n") if line.strip(" -")]
        assert "\n".join(lines) == text, body
