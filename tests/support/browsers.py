"""A real browser: the Chromium of the system, without a window, driven by Playwright.

Tests ask for the fixture `open_page` of conftest.py, carry the marker `browser`, and are plain functions: Playwright's
event loop runs in this thread as long as the browser is open.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

COMMANDS = ("chromium", "chromium-browser", "google-chrome")
LOCAL_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
"""No name has an address for the browser, so nothing outside of this machine is reached."""
OWN_SCHEMES = frozenset({"data", "blob", "about"})
"""URLs of these schemes are no requests to another origin."""
START_TIMEOUT_MS = 60_000
TIMEOUT_MS = 60_000
"""How long a page may take for a step. Swagger UI needs 2 s of CPU to draw, which is far more beside other tests."""


def browser_command() -> str:
    """Return the path of the browser. Without one, skip the test; with CI in the environment, fail it."""
    if found := next(filter(None, map(shutil.which, COMMANDS)), None):
        return found
    missing = "chromium is not installed (Debian: apt-get install chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser until the end of the block."""
    command = browser_command()
    # Chromium's sandbox does not work for root, nor in most containers.
    options = [LOCAL_ONLY, "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=command, args=options, headless=True, timeout=START_TIMEOUT_MS
        )
        with ExitStack() as stack:
            stack.callback(browser.close)
            yield browser


class OpenedPages:
    """Opens pages for one test, and collects what must not happen in them."""

    def __init__(self, browser: Browser) -> None:
        self.complaints: list[str] = []
        self._browser = browser
        self._expected: list[re.Pattern[str]] = []
        self._contexts: list[BrowserContext] = []

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 800,
        theme: Literal["light", "dark"] = "light",
        expected: Sequence[str] = (),
        **options: Any,
    ) -> Page:
        """Open *url* in a new, empty profile and return the page once it has loaded.

        Args:
            url: of our server. Its origin is the only one that the page may contact.
            width: of the window, in CSS pixels.
            height: of the window.
            theme: `light` or `dark`: what the system prefers.
            expected: patterns of console errors that are right, such as `status of 401`.
            options: of Playwright's `new_context`, such as `has_touch`.
        """
        self._expected += map(re.compile, expected)
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            **options,
        )
        self._contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        origin = _origin(url)
        context.on("request", lambda request: self._check_request(request, origin))
        context.on("console", self._check_console)
        context.on("weberror", lambda error: self._complain(f"uncaught: {error.error}"))
        page = context.new_page()
        page.goto(url)
        return page

    def close(self) -> None:
        """Close all pages, and fail if one of them complained.

        A page that is closed may complain of that: only what came before counts.
        """
        complaints = [*self.complaints]
        for context in self._contexts:
            context.close()
        assert complaints == []

    def _check_request(self, request: Request, origin: str) -> None:
        if urlsplit(request.url).scheme not in OWN_SCHEMES and _origin(request.url) != origin:
            self.complaints.append(f"foreign request: {request.url}")

    def _check_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._complain(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _complain(self, complaint: str) -> None:
        if not any(pattern.search(complaint) for pattern in self._expected):
            self.complaints.append(complaint)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
