"""The frame of the page in a browser: tabs, theme, keyboard, names, contrast, widths."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

OpenPage = Callable[..., Page]
AUDIT = Path(__file__).with_name("audit.js").read_text().rstrip(";\n")
SERIES_CONTRAST = """async () => {
    const { color } = await import("./page/state.js");
    return [1, 2, 3, 4, 5, 6, 7].map((number) => color(`--series-${number}`));
}"""


@pytest.fixture
def tiny(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    return server_with(MODELS_DIR=str(tiny_models), DEFAULT_MODEL="tiny/one", REQUIRED_MODELS="tiny/one")


def audit(page: Page, check: str) -> Any:
    """Return what the function *check* of audit.js finds in the page."""
    return page.evaluate(f"() => {AUDIT}.{check}()")


def opened(open_page: OpenPage, url: str, **options: object) -> Page:
    page = open_page(url, **options)
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator(".model").first).to_be_visible()
    return page


def test_tabs_are_operated_by_the_keyboard_and_have_addresses(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = opened(open_page, tiny.url)
    overview, playground = page.get_by_role("tab", name="Overview"), page.get_by_role("tab", name="Playground")
    overview.focus()
    page.keyboard.press("ArrowRight")
    expect(playground).to_be_focused()
    expect(playground).to_have_attribute("aria-selected", "true")
    expect(page.locator("#overview")).to_be_hidden()
    assert page.url.endswith("#playground")
    page.keyboard.press("Home")
    expect(overview).to_be_focused()
    expect(page.locator("#overview")).to_be_visible()
    page.go_back()
    expect(playground).to_have_attribute("aria-selected", "true")
    page.reload()
    expect(playground).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("link", name="API docs")).to_have_attribute("href", "./docs")


def test_first_stop_of_the_keyboard_skips_the_header(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = opened(open_page, tiny.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#overview")).to_be_visible()


def test_everything_that_takes_the_focus_shows_it(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = opened(open_page, tiny.url)
    seen = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        name, style, width = audit(page, "focusRing")
        seen.add(name)
        if name == "BODY":
            break  # past the last one
        assert (style, width) == ("solid", "2px"), name
    assert {"tab-overview", "docs-link", "key-button", "theme-button"} <= seen


def test_theme_follows_the_system_until_one_is_chosen(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = opened(open_page, tiny.url, theme="dark")
    background = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    button = page.get_by_role("button", name="Theme: automatic")
    button.click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark
    page.get_by_role("button", name="Theme: dark").click()
    assert page.evaluate(background) == light


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", ["overview", "playground"])
def test_page_is_accessible(open_page: OpenPage, tiny: ServerProcess, theme: str, view: str) -> None:
    page = opened(open_page, tiny.url, theme=theme)
    page.get_by_role("tab", name=view.title()).click()
    assert audit(page, "unnamed") == []
    assert audit(page, "brokenReferences") == []
    assert audit(page, "skippedHeadings") == []
    assert audit(page, "lowContrast") == []
    assert page.evaluate("() => document.documentElement.lang") == "en"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_of_charts_have_contrast_and_differ(open_page: OpenPage, tiny: ServerProcess, theme: str) -> None:
    page = opened(open_page, tiny.url, theme=theme)
    colours = page.evaluate(SERIES_CONTRAST)
    assert len(set(colours)) == 7
    surface = page.locator(".card").first.evaluate("(card) => getComputedStyle(card).backgroundColor")
    assert min(contrast(colour, surface) for colour in colours) >= 3


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_page_fits_the_window_and_does_not_shift(open_page: OpenPage, tiny: ServerProcess, width: int) -> None:
    page = opened(open_page, tiny.url, width=width)
    page.wait_for_function("document.querySelectorAll('.chart-card canvas').length > 0")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    for chart in page.locator(".chart-card canvas").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert audit(page, "layoutShift") < 0.1


def test_a_view_that_cannot_start_leaves_the_other_alone(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = open_page(tiny.url, expected=["broken on purpose"])
    broken = "export function mount() { throw new Error('broken on purpose'); }"
    page.route(re.compile(r"/playground\.js"), lambda route: route.fulfill(body=broken, content_type="text/javascript"))
    page.reload()
    expect(page.locator("#health")).to_have_text("Healthy")
    page.get_by_role("tab", name="Playground").click()
    expect(page.get_by_role("alert")).to_contain_text("This view could not start.")


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours such as `rgb(1, 2, 3)`, by WCAG."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)
