"""The API docs in a browser that reaches nothing but the service."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from api.openapi import TAGS
from tests.page.injection import INJECT
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

Open = Callable[..., Page]
KEY = "an-api-key-of-32-characters-or-so"


class Operation:
    """One operation, opened."""

    def __init__(self, page: Page, method: str, path: str) -> None:
        paths = page.locator(f".opblock-{method}", has=page.locator(f'[data-path="{path}"]'))
        self.block = paths.first
        self.block.locator(".opblock-summary-control").click()

    def execute(self) -> tuple[str, str]:
        """Send the example, and return status and body of the answer."""
        self.block.locator("button.execute").click()
        answer = self.block.locator(".live-responses-table .response")
        status = answer.locator(".response-col_status").inner_text()
        return status.split()[0], answer.locator("pre.microlight, .highlight-code").first.inner_text()


def test_docs_show_every_group_in_order_and_need_nothing_from_outside(open_page: Open, base_url: str) -> None:
    page = open_page(f"{base_url}/schema/")
    expect(page).to_have_url(f"{base_url}/docs")
    expect(page.locator(".opblock-tag")).to_have_count(len(TAGS))
    titles = [re.split(r"\s", title)[0] for title in page.locator(".opblock-tag").all_inner_texts()]
    assert titles == [tag.name for tag in TAGS]
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_docs_follow_the_theme_of_the_system_on_a_narrow_screen(open_page: Open, base_url: str, theme: str) -> None:
    page = open_page(f"{base_url}/docs", theme=theme, width=360)
    page.locator(".opblock").first.wait_for()
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 150) is (theme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_docs_run_no_script_and_use_no_style_that_stands_in_the_document(open_page: Open, base_url: str) -> None:
    page = open_page(f"{base_url}/docs", expected=["Content Security Policy"])
    page.locator(".opblock").first.wait_for()
    assert page.evaluate(INJECT) == []


def test_example_can_be_sent(open_page: Open, base_url: str) -> None:
    page = open_page(f"{base_url}/docs")
    status, body = Operation(page, "post", "/embed").execute()
    assert status == "200"
    assert '"embedding"' in body


def test_closed_docs_ask_for_a_key_and_send_it_with_examples(
    open_page: Open, server_with: Callable[..., ServerProcess]
) -> None:
    url = server_with(API_KEYS=KEY, CLOSED_ROUTES="docs,models").url
    page = open_page(f"{url}/docs", expected=["status of 401"])
    expect(page.locator("#key-reason")).to_have_text("The service shows this only to callers with a key.")
    page.get_by_label("API key or token").fill("wrong")
    page.get_by_role("button", name="Show the API docs").click()
    expect(page.locator("#key-reason")).to_have_text("The key is not valid.")
    page.get_by_label("API key or token").fill(KEY)
    page.get_by_label("API key or token").press("Enter")
    assert Operation(page, "post", "/embed").execute()[0] == "200"
    page.reload()
    page.locator(".opblock").first.wait_for()  # the key is kept for the tab
    assert page.evaluate("Object.keys(sessionStorage)") == ["fast-embedding-key /"]  # of this path of the host only
    page.goto(f"{url}/")
    expect(page.locator("#key-words")).to_have_text("Forget the key")  # the page has it, too


def test_key_can_be_entered_in_the_authorize_dialog(open_page: Open, server_with: Callable[..., ServerProcess]) -> None:
    url = server_with(API_KEYS=KEY, CLOSED_ROUTES="models").url
    page = open_page(f"{url}/docs", expected=["status of 401"])
    models = Operation(page, "get", "/models")
    assert models.execute()[0] == "401"
    page.locator(".auth-wrapper .authorize").first.click()
    dialog = page.locator(".dialog-ux")
    dialog.locator("input").first.fill(KEY)
    dialog.locator("button.authorize").first.click()
    dialog.locator("button.btn-done").first.click()
    models.block.locator("button.execute").click()
    expect(models.block.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")


def test_service_that_is_gone_is_reported_in_words(open_page: Open, base_url: str) -> None:
    page = open_page(f"{base_url}/docs", expected=["ERR_FAILED", "Failed to load"])
    page.route("**/openapi.json", lambda route: route.abort())
    page.reload()
    expect(page.locator("#message")).to_have_text("The service cannot be reached. Reload this page to try again.")
