"""The root address and the files of the page: who gets what, and with what headers."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from api.page import PAGE_POLICY, START
from tests.support.apps import running_app
from web.static_files import MEDIA_TYPES, STATIC_DIR

Client = TestClient[Litestar]
CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FILES = sorted(
    path.relative_to(STATIC_DIR / "page").as_posix()
    for path in (STATIC_DIR / "page").rglob("*")
    if path.suffix in MEDIA_TYPES
)


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> Iterator[Client]:
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as client:
        yield client


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        pytest.param(CHROMIUM, "text/html; charset=utf-8", id="browser"),
        pytest.param("text/html", "text/html; charset=utf-8", id="html only"),
        pytest.param("text/*", "text/html; charset=utf-8", id="text"),
        pytest.param("application/json;q=0.5, text/html", "text/html; charset=utf-8", id="html preferred"),
        pytest.param(None, "application/json", id="no header"),
        pytest.param("*/*", "application/json", id="anything"),
        pytest.param("application/json", "application/json", id="json"),
        pytest.param("application/json, text/html;q=0.9", "application/json", id="json preferred"),
        pytest.param("text/html;q=0, */*", "application/json", id="html excluded"),
        pytest.param("application/json, text/html", "application/json", id="both alike"),
        pytest.param("text/html;q=1e999", "application/json", id="quality without an end"),
    ],
)
def test_browsers_get_the_page_and_programs_get_json(client: Client, accept: str | None, media_type: str) -> None:
    response = client.get("/", headers={} if accept is None else {"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert "accept" in response.headers["vary"].lower().split(", ")
    assert (b"<!doctype html>" in response.content[:50].lower()) is ("html" in media_type)


def test_format_that_the_root_address_does_not_have_is_406(client: Client) -> None:
    response = client.get("/", headers={"Accept": "image/png"})
    assert (response.status_code, response.json()["code"]) == (406, "not-acceptable")
    assert response.json()["detail"] == "Send 'Accept: application/json' or 'Accept: text/html'."


def test_page_has_strict_security_headers(client: Client) -> None:
    headers = client.get("/", headers={"Accept": CHROMIUM}).headers
    assert headers["content-security-policy"] == PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert [value for name, value in headers.multi_items() if name == "cache-control"] == ["no-cache"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", FILES)
def test_each_file_of_the_page_is_served(client: Client, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert response.status_code == 200
    assert response.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]
    assert response.content == (STATIC_DIR / "page" / name).read_bytes()
    unchanged = client.get(f"/page/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    head = client.head(f"/page/{name}")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", response.headers["etag"])


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/nothing.js",
        "/page/vendor",
        "/page/../main.py",
        "/page/%2e%2e/%2e%2e/main.py",
        "/page/..%2f..%2fmain.py",
        "/page//etc/passwd",
        "/page/app.js%00.css",
    ],
)
def test_other_addresses_are_404_problems(client: Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not-found")


def test_files_are_read_only(client: Client) -> None:
    assert client.post("/page/app.js").status_code == 405


def test_page_needs_no_key(tiny_models: Path) -> None:
    """It contains nothing; what it asks the service for needs a key."""
    own = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "API_KEYS": "k" * 32}
    with running_app(**own, CLOSED_ROUTES="models,metrics,docs") as client:
        assert client.get("/", headers={"Accept": CHROMIUM}).headers["content-type"].startswith("text/html")
        assert client.get(f"/page/{FILES[0]}").status_code == 200


def test_page_can_be_turned_off(tiny_models: Path) -> None:
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", ENABLE_PAGE="false") as client:
        assert client.get("/", headers={"Accept": CHROMIUM}).headers["content-type"] == "application/json"
        assert client.get("/", headers={"Accept": "text/html"}).status_code == 406
        for name in FILES:
            response = client.get(f"/page/{name}")
            assert (response.status_code, response.json()["code"]) == (404, "not-found")


def test_page_is_small() -> None:
    """All that a browser loads for the page, compressed: less than 120 KB."""
    sizes = {name: len(gzip.compress((STATIC_DIR / "page" / name).read_bytes(), 9)) for name in FILES}
    assert START in sizes
    assert sum(sizes.values()) < 120_000, sizes
