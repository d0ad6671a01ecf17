"""The page for preferences in a real browser: judged by keys alone, readable, labelled, and safe before hostile text."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the toys of the page's own tests, and what the report is measured by

from serving.label_toys import CATEGORIES, HOSTILE, judgement, pair  # noqa: E402

from browser.test_report import BROWSERS, CONTRAST  # noqa: E402
from luyen.serving.label_app import Site  # noqa: E402
from luyen.serving.label_server import listen  # noqa: E402
from luyen.serving.label_store import Store  # noqa: E402

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[test]')")

# WCAG 2.2, 4.1.2 and 1.3.1: every control has a name that the browser computes from its label, and ids are unique.
UNNAMED = """() => [...document.querySelectorAll('input, textarea, button, select')].filter(e => e.checkVisibility()
  && !(e.labels && [...e.labels].some(l => l.textContent.trim())) && !e.textContent.trim() && !e.getAttribute('aria-label'))
  .map(e => e.outerHTML)"""
TWICE = "() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.filter((id, i) => ids.indexOf(id) !== i); }"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Store, str]]:
    """A page with three pairs, the first with hostile text, on a port of its own."""
    with Store.open(tmp_path / "labels") as store, listen("127.0.0.1", 0) as listener:
        store.add([pair(1, good=HOSTILE), pair(2), pair(3)])
        port = listener.getsockname()[1]
        application = Site(store, port=port, categories=CATEGORIES).application()
        server = uvicorn.Server(uvicorn.Config(application, http="h11", ws="none", lifespan="off", interface="asgi3", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield store, f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(20)


class Visit:
    """A page that was opened, and everything that it should not have done."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.goto(address)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def at(self, words: str) -> None:
        """Wait until the conversation shown has these words."""
        self.page.locator("#talk", has_text=words).wait_for(timeout=10_000)


def until(met: Any) -> None:
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_person_judges_by_keys_alone(browser: Any, site: tuple[Store, str]) -> None:
    store, address = site
    visit = Visit(browser, address)
    visit.page.keyboard.type("an")  # the field has the focus
    visit.press("Enter")
    visit.at("question 1")
    visit.press("Enter")
    assert "1 to 8" in visit.page.locator("#status").inner_text(), "nothing chosen yet, nothing sent"
    visit.press("2", "s", "Enter")
    assert "which answers are safe" in visit.page.locator("#status").inner_text()
    assert visit.page.locator("#guideline-safety").is_visible() and not visit.page.locator("#guideline-helpfulness").is_visible()
    visit.press("z", "a", "Space", "Enter")
    visit.at("question 2")
    (first,) = store.current()
    assert (first.grade, first.domain, first.safety, first.categories) == ("better", "safety", "chosen_safe", ("wrong",))
    assert first.preferred == first.left and first.annotator == "an" and 0 < first.seconds < 60
    assert visit.page.locator("input[value=safety]").is_checked(), "the domain stays"
    visit.press("h", "r", "End")
    visit.page.keyboard.type(" indeed 14k")
    visit.press("Escape", "8", "Enter")
    visit.at("question 3")
    second = store.given("an", pair(2).id)[0]
    assert second.grade == "significantly_better" and second.preferred == 1 - second.left
    assert second.turns(1 - second.left)[-1].content.endswith(" indeed 14k"), "letters in a text are letters"
    visit.press("b")
    visit.at("question 2")
    assert visit.page.locator("#right-box").input_value().endswith("indeed 14k")
    assert visit.page.locator("input[value='right significantly_better']").is_checked()
    visit.press("5", "Enter")
    visit.at("question 3")
    assert [click.grade for click in store.given("an", pair(2).id)] == ["significantly_better", "negligibly_better"]
    visit.press("k")
    visit.page.get_by_text("All pairs are judged").wait_for()
    assert store.given("an", pair(3).id)[0].preferred is None
    assert visit.problems == []
    visit.context.close()


def test_hostile_text_is_shown_as_text_and_nothing_else_is_loaded(browser: Any, site: tuple[Store, str]) -> None:
    _, address = site
    visit = Visit(browser, f"{address}/?annotator=an")
    visit.at("question 1")
    shown = visit.page.locator("#left-text").inner_text() + visit.page.locator("#right-text").inner_text()
    assert "<script>document.title='owned'</script>" in shown and "{{ 7*7 }}" in shown
    assert visit.page.title() == "Which answer is better?" and visit.page.locator("img").count() == 0
    assert all(url.startswith((address, "data:")) for url in visit.requests)
    assert visit.problems == []
    visit.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_every_control_is_named_and_every_text_readable(browser: Any, site: tuple[Store, str], width: int, scheme: str) -> None:
    store, address = site
    store.judge(judgement(pair(2), "binh"))
    for path in ("/", "/?annotator=an", "/stats"):
        visit = Visit(browser, address + path, width, scheme)
        if "annotator" in path:
            visit.at("question 1")
            visit.page.locator("#help summary").click()
            visit.page.locator("#left-edit").click()
        assert visit.page.evaluate(UNNAMED) == [] and visit.page.evaluate(TWICE) == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        ratio, where = visit.page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"contrast {ratio:.2f}: {where}"
        assert visit.problems == []
        visit.context.close()


def test_keys_can_be_switched_off_and_the_tab_key_reaches_everything(browser: Any, site: tuple[Store, str]) -> None:
    store, address = site
    visit = Visit(browser, f"{address}/?annotator=an")
    visit.at("question 1")
    visit.page.locator("#help summary").click()
    visit.page.locator("#keys").uncheck()
    visit.page.locator("#talk-title").focus()
    visit.press("2", "k")
    assert visit.page.locator("input[name=grade]:checked").count() == 0 and store.current() == []
    reached = set()
    for _ in range(40):
        visit.press("Tab")
        reached.add(visit.page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"left-edit", "right-edit", "grade", "domain", "safety", "category", "save", "skip", "back"} <= reached
    visit.page.get_by_role("radio", name="Left better").check()
    visit.page.get_by_role("button", name="Save, next").click()
    visit.at("question 2")
    assert store.current()[0].grade == "better"
    visit.context.close()


def test_a_click_that_was_not_saved_is_told_and_the_pair_stays(browser: Any, site: tuple[Store, str]) -> None:
    store, address = site
    visit = Visit(browser, f"{address}/?annotator=an")
    visit.at("question 1")
    visit.page.route(
        "**/judge", lambda route: route.fulfill(status=507, json={"state": "refused", "reason": "not saved: the disk is full"})
    )
    visit.press("1", "Enter")
    visit.page.get_by_text("the disk is full").wait_for()
    assert "question 1" in visit.page.locator("#talk").inner_text() and store.current() == []
    visit.page.unroute("**/judge")
    visit.page.route("**/judge", lambda route: route.abort(), times=1)
    visit.press("Enter")
    visit.page.get_by_text("It is sent again").wait_for()
    until(lambda: len(store.current()) == 1)
    visit.at("question 2")
    visit.context.close()
