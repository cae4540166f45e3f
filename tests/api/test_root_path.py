"""ROOT_PATH: with and without the prefix, every path means the same, and addresses in answers have it."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from assembly.serve import early_rejections
from config import SettingsError
from main import create_app
from tests.support.apps import running_app, settings_of
from web.path_prefix import PathPrefix

Client = TestClient[Litestar]
PREFIX = "/tools/vectors"
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> Iterator[Client]:
    own = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"}
    with running_app(**own, ROOT_PATH=f"{PREFIX}/", ALLOWED_HOSTS="testserver.local") as client:
        yield client


def get(client: Client, path: str, **headers: str) -> httpx.Response:
    return client.get(path, headers=headers, follow_redirects=False)


@pytest.fixture(params=["", PREFIX], ids=["removed by the proxy", "passed on"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_routes_work_and_errors_are_those_of_the_route(client: Client, prefix: str) -> None:
    assert len(client.post(f"{prefix}/embed", json={"text": "one"}).json()["embedding"]) > 1
    refused = client.post(f"{prefix}/v1/embeddings", json={}).json()
    assert {"error", "code"} <= refused.keys()  # OpenAI's members and ours
    for route in ("/health/live", "/models", "/metrics", "/models/tiny/one"):
        assert get(client, prefix + route).status_code == 200
    assert client.head(f"{prefix}/").status_code == 200
    # Probes may name any host, below the prefix, too.
    assert get(client, f"{prefix}/health/live", Host="10.0.0.1").status_code == 200
    assert get(client, f"{prefix}/models", Host="10.0.0.1").status_code == 421


def test_addresses_in_answers_have_the_prefix(client: Client, prefix: str) -> None:
    assert get(client, f"{prefix}/").json()["docs"] == f"{PREFIX}/docs"
    missing = get(client, f"{prefix}/nothing").json()["detail"]
    assert missing == f"There is nothing at this address. The API is described at {PREFIX}/docs."
    assert get(client, f"{prefix}/schema/openapi.json").json()["servers"] == [{"url": PREFIX}]
    for path in ("/schema", "/schema/", "/schema/redoc", "/docs/"):
        location = get(client, prefix + path).headers["location"]
        assert urljoin(f"http://host{PREFIX}{path}", location) == f"http://host{PREFIX}/docs"


def test_page_and_docs_are_served_and_the_prefix_alone_leads_to_the_page(client: Client, prefix: str) -> None:
    for path in ("/", "/docs"):
        assert get(client, prefix + path, **BROWSER).headers["content-type"].startswith("text/html")
    for path in ("/page/app.js", "/docs/docs.js"):
        assert get(client, prefix + path).status_code == 200
    if prefix:
        location = get(client, prefix, **BROWSER).headers["location"]
        assert urljoin(f"http://host{PREFIX}", location) == f"http://host{PREFIX}/"
        assert get(client, prefix).json()["docs"] == f"{PREFIX}/docs"


def test_other_prefixes_are_not_removed(client: Client) -> None:
    for path in ("/tools/health", f"{PREFIX}s/health", f"/x{PREFIX}/health", f"{PREFIX}{PREFIX}/health"):
        assert get(client, path).status_code == 404


def test_without_a_prefix_the_document_names_the_root(tiny_models: Path) -> None:
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as client:
        assert get(client, "/schema/openapi.json").json()["servers"] == [{"url": "/"}]
        assert get(client, f"{PREFIX}/health").status_code == 404


@pytest.mark.parametrize("path", ["/api", "/v1", "/embed", "/models/mine", "/docs", "/page", "/health"])
def test_prefix_of_our_own_routes_stops_the_start(path: str) -> None:
    with pytest.raises(SettingsError, match=f"ROOT_PATH={path} cannot be used: the service's own path /"):
        create_app(settings_of(ROOT_PATH=path))


def test_early_rejections_know_the_prefix() -> None:
    """They are made before the app runs, by the path of the request line."""
    seen: list[str] = []
    reject = early_rejections(settings_of(), PathPrefix(PREFIX, {}), lambda path, *_: seen.append(path))
    for path in (f"{PREFIX}/embed?a=b", "/embed"):
        reject(path, None, [(b"host", b"any")])
    assert seen == ["/embed?a=b", "/embed"]
