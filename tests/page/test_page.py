"""The page in a browser: that it opens as strict as it is served."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.page.injection import INJECT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_opens_without_errors_and_contacts_this_service_only(
    open_page: Callable[..., Page], base_url: str, width: int, theme: str
) -> None:
    page = open_page(base_url, width=width, theme=theme)
    assert page.title() == "Fast Embedding API"
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


def test_page_runs_no_script_and_uses_no_style_that_stands_in_the_document(
    open_page: Callable[..., Page], base_url: str
) -> None:
    assert open_page(base_url, expected=["Content Security Policy"]).evaluate(INJECT) == []
