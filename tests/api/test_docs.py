"""The API docs: the page for people, the document for programs, and the addresses that led there before."""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import yaml
from litestar import Litestar
from litestar.testing import TestClient

from api.docs import DOCS_POLICY, FORMER_PAGES, JSON_TYPE, YAML_TYPE
from api.openapi import TAGS
from tests.support.apps import running_app
from tests.support.servers import ROOT, environment
from web.static_files import MEDIA_TYPES, STATIC_DIR

Client = TestClient[Litestar]
DOCUMENTS = ["/schema/openapi.json", "/schema/openapi.yaml", "/schema/openapi.yml"]
FILES = sorted(
    path.relative_to(STATIC_DIR / "docs").as_posix()
    for path in (STATIC_DIR / "docs").rglob("*")
    if path.suffix in MEDIA_TYPES
)
KEY = "k" * 32


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> Iterator[Client]:
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as client:
        yield client


def get(client: Client, path: str, **headers: str) -> httpx.Response:
    return client.get(path, headers=headers, follow_redirects=False)


def test_docs_are_a_page_that_may_load_only_our_own_files(client: Client) -> None:
    response = get(client, "/docs")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.headers["content-security-policy"] == DOCS_POLICY
    assert "unsafe" not in DOCS_POLICY
    assert "://" not in response.text
    assert client.head("/docs").headers["etag"] == response.headers["etag"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_of_the_docs_is_served(client: Client, name: str) -> None:
    response = get(client, f"/docs/{name}")
    assert (response.status_code, response.headers["content-type"]) == (200, MEDIA_TYPES[Path(name).suffix])
    assert response.content == (STATIC_DIR / "docs" / name).read_bytes()


@pytest.mark.parametrize("path", [address + end for address in FORMER_PAGES for end in ("", "/")] + ["/docs/"])
def test_other_addresses_of_the_docs_lead_to_them(client: Client, path: str) -> None:
    response = get(client, path)
    assert (response.status_code, response.headers["cache-control"]) == (307, "no-store")
    assert urljoin(f"http://host{path}", response.headers["location"]) == "http://host/docs"


@pytest.mark.parametrize(
    "path", ["/schema/nothing", "/docs/nothing", "/docs/../main.py", "/schema/oauth2-redirect.html"]
)
def test_other_addresses_are_404_problems(client: Client, path: str) -> None:
    response = get(client, path)
    assert (response.status_code, response.json()["code"]) == (404, "not-found")
    assert response.json()["detail"] == "There is nothing at this address. The API is described at /docs."


def test_document_is_the_same_as_json_and_as_yaml(client: Client) -> None:
    as_json, as_yaml, as_yml = (get(client, path) for path in DOCUMENTS)
    assert as_json.headers["content-type"] == JSON_TYPE
    assert as_yaml.headers["content-type"] == as_yml.headers["content-type"] == YAML_TYPE
    assert as_yaml.content == as_yml.content
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    assert yaml.load(as_yaml.content, loader) == as_json.json()  # noqa: S506 - a safe loader
    assert [tag["name"] for tag in as_json.json()["tags"]] == [tag.name for tag in TAGS]
    assert list(as_json.json()["paths"]) == sorted(as_json.json()["paths"])


@pytest.mark.parametrize("path", DOCUMENTS)
def test_document_is_sent_compressed_and_only_if_it_is_new(client: Client, path: str) -> None:
    response = get(client, path, **{"Accept-Encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) < 60_000 < len(response.content)
    again = get(client, path, **{"Accept-Encoding": "gzip", "If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


PRINT_DOCUMENT = """
import hashlib, sys
from litestar.testing import TestClient
from main import app
client = TestClient(app)
print(client.get("/schema/openapi.json").headers["etag"], client.get("/schema/openapi.yaml").headers["etag"])
"""


def test_all_processes_send_the_same_document() -> None:
    """Otherwise a client of several workers would fetch it again and again."""
    tags = {
        subprocess.run(
            [sys.executable, "-c", PRINT_DOCUMENT],
            cwd=ROOT,
            env=environment({"PYTHONHASHSEED": seed, "LOG_LEVEL": "ERROR", "PATH": os.environ["PATH"]}),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(tags) == 1


def test_closed_docs_need_a_key_for_the_document_only(tiny_models: Path) -> None:
    """The page itself contains nothing: it asks for a key, and fetches the document with it."""
    own = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "API_KEYS": KEY}
    with running_app(**own, CLOSED_ROUTES="docs") as client:
        for path in DOCUMENTS:
            assert get(client, path).status_code == 401
            assert get(client, path, Authorization=f"Bearer {KEY}").status_code == 200
            # A cached answer must not spare the check of the key.
            assert get(client, path, **{"If-None-Match": "*"}).status_code == 401
        assert get(client, "/docs").status_code == 200
        assert get(client, "/schema").status_code == 307


def test_docs_can_be_turned_off(tiny_models: Path) -> None:
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", ENABLE_DOCS="false") as client:
        for path in ["/docs", "/docs/", "/docs/docs.js", *FORMER_PAGES, *DOCUMENTS]:
            response = get(client, path)
            assert (response.status_code, response.json()["code"]) == (404, "not-found")
            assert "docs" not in response.json()["detail"]
        assert "docs" not in get(client, "/").json()


def test_docs_are_compressed_to_less_than_600_kilobytes() -> None:
    assert sum(len(gzip.compress((STATIC_DIR / "docs" / name).read_bytes(), 9)) for name in FILES) < 600_000
