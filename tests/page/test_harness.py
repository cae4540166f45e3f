"""The harness itself: pages that do what they must not make their test fail."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browsers import OpenedPages

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


class Documents(BaseHTTPRequestHandler):
    """Answers each path with a document that contains the path's name as a script."""

    SCRIPTS: ClassVar = {
        "/fine": "",
        "/console": "console.error('bad')",
        "/warning": "console.warn('odd')",
        "/thrown": "throw new Error('worse')",
        "/rejected": "Promise.reject(new Error('unheard'))",
        "/foreign": "fetch('http://127.0.0.2:9/x').catch(() => {})",
        "/named": "fetch('https://example.com/x').catch(() => {})",
        "/missing": "fetch('/nothing')",
    }

    def do_GET(self) -> None:
        script = self.SCRIPTS.get(self.path)
        body = f"<!doctype html><link rel=icon href=data:,><script>{script}</script>".encode()
        self.send_response(404 if script is None else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture(scope="module")
def documents() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Documents)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/console", "console error: bad"),
        ("/warning", "console warning: odd"),
        ("/thrown", "uncaught: worse"),
        ("/rejected", "uncaught: unheard"),
        ("/foreign", "foreign request: http://127.0.0.2:9/x"),
        ("/named", "foreign request: https://example.com/x"),
        ("/missing", "status of 404"),
    ],
)
def test_page_that_misbehaves_fails_its_test(browser: Browser, documents: str, path: str, complaint: str) -> None:
    pages = OpenedPages(browser)
    page = pages.open(f"{documents}{path}")
    page.wait_for_load_state("networkidle")
    page.evaluate("() => 1")  # what happened before is reported by now
    with pytest.raises(AssertionError):
        pages.close()
    assert complaint in "; ".join(pages.complaints)


def test_page_that_does_nothing_wrong_passes(open_page: Callable[..., Page], documents: str) -> None:
    assert open_page(f"{documents}/fine", width=360).evaluate("() => innerWidth") == 360


def test_expected_errors_pass(open_page: Callable[..., Page], documents: str) -> None:
    open_page(f"{documents}/missing", expected=["status of 404"]).wait_for_load_state("networkidle")
