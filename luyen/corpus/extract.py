"""HTML bytes to the main text of the page, as light markdown.

resiliparse decodes, parses and chooses the main content (navigation, scripts, forms and hidden parts go). It returns plain text, so
before parsing we put private-use characters behind the tags whose meaning would be lost and turn them into markdown afterwards:
headings `# `, lists `- `, term lists (`dt`/`dd`) as a line with the term and an indented body, `pre` as a fenced block, data tables
as `a | b`. Layout tables, as pydoc and Javadoc use them, lose their empty cells; a cell of class `title` is a heading.
"""

from __future__ import annotations

import codecs
import itertools
import re
from dataclasses import dataclass

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from luyen.corpus import legacy_vietnamese

TERM, BODY, BODY_END, CODE, CODE_END, LIST, LIST_END, ITEM = (chr(0xE000 + index) for index in range(8))
SPACE, FILL = chr(0xE00E), chr(0xE00F)
HEADINGS = {chr(0xE010 + level): level for level in range(1, 7)}
_HEADING = {level: mark for mark, level in HEADINGS.items()}
DEEPEST = 8
"""Term lists nested deeper than this are not indented further."""
_INDENTS = tuple("    " * depth for depth in range(DEEPEST + 1))
_ANY_MARK = re.compile("[\ue000-\ue01f]")
_STRUCTURE = re.compile("[\ue000-\ue002\ue005\ue006\ue010-\ue01f]|[^\ue000-\ue002\ue005\ue006\ue010-\ue01f]+")
"""Parts of a line: marks that say something about the lines behind them, and what stands between them. Marks of code and of items stay
in the text for later."""

# `[^<>]*` and not `[^>]*`, so that a page of unclosed "<td" costs linear time. Where what follows may begin many times inside one tag,
# repeats are bounded.
# Spelt out instead of IGNORECASE, so that the search can jump from "<" to "<".
# The commonest tags that matter come first and without groups, which costs a third; a cell matters by its attributes, the ends of items,
# cells and headings never do.
_BOTH_ENDS = (
    r"[dD][lLdD]|[tT](?:[aA][bB][lL][eE]|[iI][tT][lL][eE]|[eE][xX][tT][aA][rR][eE][aA])|[uU][lL]|[pP][rR][eE]"
    r"|[sS](?:[cC][rR][iI][pP][tT]|[tT][yY][lL][eE])"
)
_TAG = re.compile(
    rf"<d[dlt]>|</d[dl]>|<(?:(!--)|(/)({_BOTH_ENDS})\b[^<>]*>|({_BOTH_ENDS}|[lL][iI]|[hH][1-6]|[dD][tT]|[tT][dDhH](?=[\s/]))\b([^<>]*)>)"
)
_TITLE_CLASS = re.compile(r"class\s{0,9}=\s{0,9}[\"']?(?:[^\"'>]{0,500}[\s\"'-])?title(?:[\s\"']|$)", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:language-|lang-|highlight-source-|brush:\s*)([A-Za-z0-9+#]{1,20})")
_INNER_CODE = re.compile(r"\s{0,100}<code\b([^<>]*)>", re.IGNORECASE)
_FILE_LINK = re.compile(r"<a\b[^<>]{0,500}href\s{0,9}=\s{0,9}[\"']?file:[^<>]{0,500}>[^<>]{0,2000}</a>", re.IGNORECASE)
_TITLE_CELL = re.compile(r"<td\b[^<>]{0,500}class\s{0,9}=\s{0,9}[\"']?title\b[^<>]{0,500}>", re.IGNORECASE)
_LINK_CELL = re.compile(r"\s*<td\b[^<>]*>(?:\s|&nbsp;|<br\s*/?>|<a\b[^<>]*>[^<>]{0,2000}</a>){1,50}</td>", re.IGNORECASE)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
# resiliparse drops a text node of one three-byte character as if it were an icon, so the Vietnamese word "ở" between two links and
# our own marks would go; a second character saves them.
_LONE_LETTER = re.compile("(>\\s{0,20}[\u1ea0-\u1ef9])(?=\\s{0,20}<)")
_MARKS, _LONE_LETTERS = "\ue000".encode()[:2], ("\u1ea0".encode()[:2], "\u1ef9".encode()[:2])
"""How the UTF-8 of any of our marks begins, and of the letters that may stand alone."""
_BULLET = re.compile(rf"^(\s*)(?:• ?|\d+\. ?{ITEM})")
# resiliparse takes every <ul> outside an <article> for navigation. One without attributes that does not begin with a link is text: it goes
# through as an ordered list.
_LINK_ITEM = re.compile(r"(?:\s{0,100}<(?:li|p|span)\b[^<>]*>){1,3}\s{0,100}<a\b", re.IGNORECASE)
# What resiliparse's own rules leave standing: line-number gutters, permalink signs, page furniture floated by an inline style.
_SKIP = {
    ".gutter": "gutter", ".linenos": "linenos", ".lineno": "lineno", ".rouge-gutter": "rouge-gutter",
    ".line-numbers-rows": "line-numbers-rows", ".headerlink": "headerlink", ".anchor-link": "anchor-link", ".skip-link": "skip-link",
    **{f'div[style^="float:{space}{side}"]': f"float:{space}{side}" for space in ("", " ") for side in ("left", "right")},
}  # fmt: skip
"""Selectors, and what stands in every page that has such an element: looking for the others would cost as much."""


@dataclass(frozen=True)
class Extracted:
    """The main text of a page and its title, either may be empty."""

    text: str
    title: str
    charset: str


def charset(body: bytes, content_type: str = "") -> str:
    """The character set of a body: byte-order mark, then the Content-Type header, then `<meta>`, then valid UTF-8, then detection."""
    for mark, name in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if body.startswith(mark):
            return name
    declared = _CHARSET.search(content_type) or _CHARSET.search(body[:2048].decode("latin-1"))
    known = map_encoding_to_html5(declared[1].lower(), fallback_utf8=False) if declared else None
    if known:
        return known
    try:
        body.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        # Pages in the old Vietnamese fonts name no charset, and detectors do not know them.
        if legacy_vietnamese.detect(body[:200_000].decode("cp1252", "replace")):
            return "windows-1252"
        return str(detect_encoding(body) or "utf-8")


def decode(body: bytes, content_type: str = "") -> tuple[str, str]:
    """Text of a body and the charset used. Bytes that do not fit become U+FFFD; nothing is raised."""
    name = charset(body, content_type)
    try:
        return str(bytes_to_str(body, name, "replace", ("utf-8", "windows-1252"))), name
    except (LookupError, UnicodeError):
        return body.decode("utf-8", "replace"), "utf-8"


def extract(body: bytes, content_type: str = "text/html") -> Extracted:
    """The main text of one fetched body. Anything but HTML and XHTML is taken as plain text."""
    html, name = decode(body, content_type)
    kind = content_type.partition(";")[0].strip().lower()
    if kind and "html" not in kind and "xml" not in kind:
        return Extracted(html, "", name)
    return extract_html(html, name)


def extract_html(html: str, charset_name: str = "utf-8") -> Extracted:
    """The main text of an HTML string."""
    coded = b"" if html.isascii() else html.encode("utf-8", "surrogatepass")  # searching bytes is many times faster
    if _MARKS in coded:
        html = _ANY_MARK.sub("", html)
    if "file:" in html:
        html = _without_file_links(html)
    html = _without_links_beside_titles(html)
    if any(letters in coded for letters in _LONE_LETTERS):
        html = _LONE_LETTER.sub(rf"\1{FILL}", html)
    html = html.replace("\xa0", SPACE + FILL) if coded else html
    html = html.replace("&nbsp;", SPACE + FILL)
    tree = HTMLTree.parse(_Marker().mark(html))
    skip = [selector for selector, sign in _SKIP.items() if sign in html]
    text = extract_plain_text(tree, main_content=True, preserve_formatting=True, skip_elements=skip)
    if len(text) < 200:
        # The chooser found next to nothing: take the whole page when that is much more.
        whole = extract_plain_text(tree, main_content=False, preserve_formatting=True, skip_elements=[*skip, "nav", "footer", "form"])
        text = whole if len(whole) > 3 * len(text) else text
    title = " ".join(_ANY_MARK.sub("", (tree.title or "").replace(SPACE, " ")).split())
    return Extracted(_Writer().write(text), title, charset_name)


def _without_file_links(html: str) -> str:
    """Drop links to files of the machine that the page was made on."""
    pieces, end, found = [], 0, html.find("file:")
    while found >= 0:
        start = html.rfind("<", max(end, found - 540), found)
        link = _FILE_LINK.match(html, start) if start >= 0 else None
        if link:
            pieces.append(html[end:start])
            end = link.end()
        found = html.find("file:", max(end, found + 5))
    return "".join([*pieces, html[end:]])


def _without_links_beside_titles(html: str) -> str:
    """Drop the cells of links that stand beside a title cell: index, source, reference."""
    pieces, end = [], 0
    for title in itertools.islice(_TITLE_CELL.finditer(html), 20):
        close = html.find("</td>", title.end(), title.end() + 2000)
        links = _LINK_CELL.match(html, close + 5) if close >= 0 else None
        if links:
            pieces.append(html[end : links.start()])
            end = links.end()
    return "".join([*pieces, html[end:]]) if pieces else html


_SIMPLE: dict[str, str] = {
    "<dt>": "<dt>" + TERM + FILL, "<dd>": "<dd>" + BODY + FILL, "</dd>": BODY_END + FILL + "</dd>",
    "<dl>": LIST + FILL + "<dl>", "</dl>": "</dl>" + LIST_END + FILL,
}  # fmt: skip
"""What a tag without attributes becomes where that depends on nothing else: most of such a page's tags."""


class _Marker:
    """Puts a mark behind every tag whose meaning plain text would lose."""

    def __init__(self) -> None:
        self.tables = 0
        self.titles = 0
        self.skipping = ""
        self.comment_end = 0
        self.renamed: list[bool] = []  # one per open ul

    def mark(self, html: str) -> str:
        return _TAG.sub(self._tag, html)

    def _tag(self, match: re.Match[str]) -> str:
        whole = match[0]
        if self.comment_end and match.start() < self.comment_end:
            return whole
        if not self.skipping and (simple := _SIMPLE.get(whole)) is not None:
            return simple
        if self.skipping and whole in _SIMPLE:
            return whole
        if match[1]:
            if not self.skipping:
                end = match.string.find("-->", match.end())
                self.comment_end = end if end >= 0 else len(match.string)
            return whole
        tag, closing = (match[3] or match[4]).lower(), match[2] == "/"
        if self.skipping:
            if closing and tag == self.skipping:
                self.skipping = ""
            return whole
        if tag in ("script", "style", "textarea", "title"):
            self.skipping = "" if closing else tag
            return whole
        return self._closing(tag, whole) if closing else self._opening(tag, match)

    def _opening(self, tag: str, match: re.Match[str]) -> str:
        whole, attributes = match[0], match[5]
        if tag[0] == "h" and tag[1:].isdigit():
            return whole + _HEADING[int(tag[1:])] + FILL
        match tag:
            case "dt":
                return whole + TERM + FILL
            case "dd":
                return whole + BODY + FILL
            case "ul":
                self.renamed.append(not attributes.strip() and not _LINK_ITEM.match(match.string, match.end()))
                return "<ol>" if self.renamed[-1] else whole
            case "li" if self.renamed and self.renamed[-1]:
                return whole + ITEM + FILL
            case "dl":
                # The mark must stand in text of its own, before the list.
                return LIST + FILL + whole
            case "pre":
                inner = _INNER_CODE.match(match.string, match.end())
                language = _LANGUAGE.search(attributes + (inner[1] if inner else ""))
                return f"{whole}{CODE}{language[1].lower() if language else ''}{CODE}"
            case "table":
                self.tables += 1
            case "td" | "th" if _TITLE_CLASS.search(attributes):
                self.titles += 1
                return whole + _HEADING[1 if self.titles == 1 else min(6, self.tables + 1)] + FILL
        return whole

    def _closing(self, tag: str, whole: str) -> str:
        match tag:
            case "dd":
                return BODY_END + FILL + whole
            case "pre":
                return CODE_END + FILL + whole
            case "dl":
                return whole + LIST_END + FILL
            case "ul" if self.renamed and self.renamed.pop():
                return "</ol>"
            case "table":
                self.tables = max(0, self.tables - 1)
        return whole


class _Writer:
    """Turns plain text with marks into markdown lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.lists: list[bool] = []  # one per open dl: is a dd open in it
        self.depth = 0  # how many of them are
        self.heading = ""  # mark of a heading whose text has not come yet
        self.indent = ""
        self.in_code = False
        self.first_of_code = False

    def write(self, text: str) -> str:
        """The marked text as Markdown, line by line."""
        for line in text.replace(FILL, "").replace(SPACE, " ").replace("\xa0", " ").split("\n"):
            if self.in_code or CODE in line:
                self._code(line)
            else:
                self._line(line)
        if self.in_code:
            self._put("```")
        return "\n".join(self.lines).strip("\n")

    def _line(self, line: str) -> None:
        if line.isascii():
            self.indent = _INDENTS[min(self.depth, DEEPEST)]
        else:
            line = self._structure(line.replace(CODE_END, ""))  # one that ends no code
        if "\t\t" in line:
            cells = [cell for cell in line.split("\t\t") if cell.strip()]
            line = cells[0] if len(cells) == 1 else " | ".join(cell.strip() for cell in cells)
        if not line.strip():
            self._blank()
        elif self.heading:
            self._blank()
            self.lines += ["#" * HEADINGS[self.heading] + " " + " ".join(line.replace(ITEM, "").split()), ""]
            self.heading = ""
        else:
            if not line.isascii() and ("•" in line or ITEM in line):
                line = _BULLET.sub(r"\1- ", line).replace(ITEM, "")
            self._put(line.rstrip())

    def _structure(self, line: str) -> str:
        """Take the marks out of a line, remember what they ask for and set the indentation that holds where the line's text begins."""
        self.indent = _INDENTS[min(self.depth, DEEPEST)]
        kept: list[str] = []
        for piece in _STRUCTURE.findall(line):
            if piece in HEADINGS:
                self.heading = piece
            elif piece == LIST:
                self.lists.append(False)
            elif piece == LIST_END:
                self.depth -= bool(self.lists and self.lists.pop())
            elif piece in (TERM, BODY, BODY_END):
                if not self.lists:
                    self.lists.append(False)
                self.depth += (piece == BODY) - self.lists[-1]
                self.lists[-1] = piece == BODY
                if piece == TERM:
                    self._blank()
            else:
                if not kept:
                    self.indent = _INDENTS[min(self.depth, DEEPEST)]
                kept.append(piece)
        return "".join(kept)

    def _code(self, line: str) -> None:
        if not self.in_code:
            before, _, rest = line.partition(CODE)
            language, _, line = rest.partition(CODE)
            self._line(before)
            self._blank()
            self._put(f"```{language}")
            self.in_code, self.first_of_code = True, True
        code, ending, after = line.partition(CODE_END)
        # The mark keeps the parser from dropping the newline after <pre>.
        if (code.strip() or not ending) and not (self.first_of_code and not code.strip()):
            self.lines.append((self.indent + code.rstrip()).rstrip())
        self.first_of_code = False
        if ending:
            self.in_code = False
            self._put("```")
            self._blank()
            if after.strip():
                self._line(after)

    def _put(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def _blank(self) -> None:
        if self.lines and self.lines[-1]:
            self.lines.append("")
