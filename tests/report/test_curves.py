"""Curves: small, the same bytes every time, in the page's colours, and no setting of matplotlib is left changed."""

import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib

from luyen.report.curves import MARKERS, Line, draw, smooth, thin


def drawing(name: str = "c", points: int = 5000) -> str:
    x = list(range(points))
    y = [8 * math.exp(-i / 900) + 0.3 * math.sin(i) for i in x]
    averaged = thin(x, y)
    return str(draw([Line(averaged[0], averaged[1], "a")], name=name, x_label="step", y_label="loss", level=(8.3, "guessing")))


def test_the_same_figures_give_the_same_bytes_and_settings_stay() -> None:
    before = dict(matplotlib.rcParams)
    assert drawing() == drawing()
    assert dict(matplotlib.rcParams) == before


def test_a_long_curve_stays_small() -> None:
    assert len(drawing(points=200_000).encode()) < 60_000


def test_svg_is_well_formed_without_fixed_colours_scripts_or_addresses() -> None:
    svg = drawing()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and "width" not in root.attrib
    assert not re.search(r"#[0-9a-fA-F]{6}", svg), "every colour comes from the page"
    assert all(f"var({name})" in svg for name in ("--ink", "--soft", "--rule", "--series-1")) and not any(m in svg for m in MARKERS)
    addresses = set(re.findall(r"https?://[^\"]*", svg))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<metadata" not in svg and "<!DOCTYPE" not in svg


def test_ids_of_two_drawings_differ_and_references_resolve() -> None:
    first, second = drawing("a"), drawing("b")
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids[0]


def test_thin_keeps_the_mean_of_equal_groups() -> None:
    assert thin([1, 2, 3, 4, 5], [1, 3, 5, 7, 9], most=2) == ([2, 4.5], [3, 8], 3)
    assert thin([1, 2], [5, 6]) == ([1, 2], [5, 6], 1)
    assert thin([], []) == ([], [], 1)


def test_smooth_is_corrected_at_the_start() -> None:
    assert smooth([4.0, 4.0, 4.0]) == [4.0, 4.0, 4.0] or max(abs(v - 4) for v in smooth([4.0] * 3)) < 1e-12
    first, second = smooth([1.0, 2.0], memory=0.5)
    assert first == 1.0 and math.isclose(second, (0.25 * 1 + 0.5 * 2) / 0.75)


def test_the_legend_stands_above_the_lines_and_below_the_name_of_their_axis() -> None:
    lines = [Line([0, 1, 2], [1, 2, 9], "each step", faint=True), Line([0, 1, 2], [1, 2, 8], "averaged"), Line([1], [2], "falls fastest")]
    root = ElementTree.fromstring(str(draw(lines, name="c", x_label="step", y_label="loss")))
    svg = "{http://www.w3.org/2000/svg}"
    (legend,) = (group for group in root.iter(f"{svg}g") if group.get("id") == "c-legend_1")
    placed = {text.text: (float(text.get("x", "")), float(text.get("y", ""))) for text in legend.iter(f"{svg}text")}
    curves = [path for path in root.iter(f"{svg}path") if path not in set(legend.iter()) and "var(--series" in path.get("style", "")]
    top = min(float(y) for path in curves for y in re.findall(r"[ML] \S+ (\S+)", path.get("d", "")))
    assert list(placed) == ["each step", "averaged", "falls fastest"]
    assert len({y for _, y in placed.values()}) == 1 and all(12 < y < top for _, y in placed.values()), "one row in the strip above"
    assert [x for x, _ in placed.values()] == sorted(x for x, _ in placed.values()) and min(x for x, _ in placed.values()) > 20
