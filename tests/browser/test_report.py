"""report.html in a real browser: nothing is loaded, nothing runs, it fits a phone and is readable in both colour schemes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the toy run of the report's own tests

from report.toy_run import build  # noqa: E402

from luyen.report.page import write  # noqa: E402

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[test]')")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")

# WCAG 2.2, 1.4.3: relative luminance and contrast of every visible piece of text against the nearest filled background.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = new Map();
  const rgb = color => { if (!known.has(color)) { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    known.set(color, [...canvas.getImageData(0, 0, 1, 1).data]); } return known.get(color); };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => { for (; element; element = element.parentElement) { const c = getComputedStyle(element).backgroundColor;
    if (rgb(c)[3] > 250) return c; } return 'white'; };
  const worst = [21, ''];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.tagName === 'STYLE') continue;
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [luminance(rgb(ink)), luminance(rgb(background(element)))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) { worst[0] = ratio; worst[1] = element.outerHTML.slice(0, 120); }
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build(tmp_path_factory.mktemp("runs") / "quickstart"))


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    payload = "\"'><script>alert(1)</script><img src=http://192.0.2.1/x onerror=alert(2)><svg onload=alert(3)>" + "W" * 300
    return write(build(tmp_path_factory.mktemp("hostile") / "quickstart", hostile=payload))


class Visit:
    """A page that was opened, and everything that it should not have done."""

    def __init__(self, browser: playwright.Browser, path: Path, width: int, scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        self.page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.goto(path.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_report_loads_nothing_fits_and_is_readable(browser: playwright.Browser, report: Path, width: int, scheme: str) -> None:
    visit = Visit(browser, report, width, scheme)
    assert visit.problems == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    ratio, where = visit.page.evaluate(CONTRAST)
    assert ratio >= 4.5, f"contrast {ratio:.2f}: {where}"
    assert visit.page.locator("figure svg").count() == 6
    shades = visit.page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (sum(map(int, shades[0][4:-1].split(","))) > sum(map(int, shades[1][4:-1].split(",")))) == (scheme == "light")
    visit.context.close()


def test_screenshot_is_not_blank(browser: playwright.Browser, report: Path) -> None:
    visit = Visit(browser, report, 1280, "light")
    image = visit.page.screenshot()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) > 30_000, "text compresses badly; a blank screen takes a few kB"
    smallest = visit.page.evaluate("Math.min(...[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().height))")
    assert smallest > 100
    visit.context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_text_runs_nothing_loads_nothing_and_fits(browser: playwright.Browser, hostile_report: Path, width: int) -> None:
    visit = Visit(browser, hostile_report, width, "light")
    visit.page.wait_for_timeout(100)
    assert visit.problems == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [hostile_report.as_uri()]
    assert visit.page.locator("script, img, iframe, [onerror], [onload]").count() == 0
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.context.close()
