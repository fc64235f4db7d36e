"""The pages in a real browser."""

import os
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from stages import report
from stages.core import files
from stages.core.paths import VALIDATION_PAGE
from stages.gate import page as gate_page
from tests.support.gates import ABOUT, outcome
from tests.support.reports import with_all_parts

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


@pytest.fixture(scope="module")
def browser():
    """Chromium or Chrome, without a window. GitHub's machines have one, so there its absence is a failure."""
    found = next(filter(None, map(shutil.which, (*BROWSERS, MAC))), None)
    if found is None and "GITHUB_ACTIONS" not in os.environ:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(BROWSERS)} is installed")
    assert found is not None
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=found) as browser:
        yield browser


def seen(browser, scheme="light", width=1280):
    """The page in the browser, and the list that takes what it loads, logs and throws."""
    with_all_parts()
    report.main()
    return opened(browser, report.HTML, scheme, width)


def opened(browser, path, scheme="light", width=1280):
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    events = []
    tab.on("request", lambda request: events.append(request.url))
    tab.on("console", lambda message: events.append(message.text))
    tab.on("pageerror", lambda error: events.append(str(error)))
    tab.goto(path.resolve().as_uri())
    return tab, events


@pytest.mark.parametrize("width", [1280, 375], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_finds_no_fault(project, browser, scheme, width):
    tab, events = seen(browser, scheme, width)
    assert events == [report.HTML.resolve().as_uri()]
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    assert events == [report.HTML.resolve().as_uri()]
    tab.close()


@pytest.mark.parametrize("width", [1280, 375], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_finds_no_fault_in_the_page_of_the_gate(here, browser, scheme, width):
    files.write_text(VALIDATION_PAGE, gate_page.render(outcome(), ABOUT))
    tab, events = opened(browser, VALIDATION_PAGE, scheme, width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    assert events == [VALIDATION_PAGE.resolve().as_uri()]
    tab.close()


def test_the_phone_shows_the_metrics_without_scrolling(project, browser):
    tab, _ = seen(browser, width=375)
    regions = "[...document.querySelectorAll('.scroll')].map(one => [one.ariaLabel, one.scrollWidth - one.clientWidth])"
    assert {name: spare for name, spare in tab.evaluate(regions) if name in ("Metrics", "Lengths")} == {
        "Metrics": 0,
        "Lengths": 0,
    }
    tab.close()


def test_the_keyboard_opens_a_conversation(project, browser):
    tab, _ = seen(browser)
    tab.locator("summary", has_text="conversations, chrF").last.click()
    summary = tab.locator("summary", has_text="Room 58?")
    tab.locator("summary", has_text="Room 57?").focus()
    tab.keyboard.press("Tab")
    assert summary.evaluate("one => one === document.activeElement")
    assert summary.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open")
    tab.close()
