"""The service below a path of a real nginx, that removes the prefix or passes it on; with the lines of the guide."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.proxies import ProxyProcess, problem, running_proxy
from tests.support.servers import ROOT, ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.nginx, pytest.mark.timeout(240)]

PREFIX = "/embeddings"
GUIDE = (ROOT / "docs" / "production" / "nginx.md").read_text("utf-8")
[LINES] = re.findall(r"test_root_path\.py -->\n```nginx\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(params=["removed", "passed on"])
def proxy(
    request: pytest.FixtureRequest, tmp_path: Path, server_with: Callable[..., ServerProcess]
) -> Iterator[ProxyProcess]:
    replica = server_with(ROOT_PATH=PREFIX).url.removeprefix("http://")
    lines = LINES if request.param == "removed" else LINES.replace("replicas/;", "replicas;")
    with running_proxy(tmp_path, [replica], {r"(?m)^        location / \{": f"{lines}        location / {{"}) as proxy:
        yield proxy


def test_everything_works_below_the_prefix(proxy: ProxyProcess) -> None:
    with httpx.Client(base_url=f"{proxy.url}{PREFIX}", follow_redirects=True) as client:
        assert client.get("/").json()["docs"] == f"{PREFIX}/docs"
        assert len(client.post("/embed", json={"text": "one"}).json()["embedding"]) == 384
        assert "error" in client.post("/v1/embeddings", json={}).json()
        assert f"{PREFIX}/docs" in problem(client.get("/nothing"), 404, "not-found")["detail"]
        assert client.get("/schema/openapi.json").json()["servers"] == [{"url": PREFIX}]
        for path in ("/schema", "/schema/", "/schema/swagger/", "/docs/"):
            assert str(client.get(path).url) == f"{proxy.url}{PREFIX}/docs"
        for path in ("/metrics", "/metrics/", "/metrics/prometheus", "/cache", f"{PREFIX}/metrics", f"{PREFIX}//cache"):
            assert client.get(path).status_code == 403
        bare = client.get(f"{proxy.url}{PREFIX}", headers={"Accept": "text/html"})
        assert (bare.status_code, str(bare.url)) == (200, f"{proxy.url}{PREFIX}/")
        assert client.post(f"{proxy.url}{PREFIX}", json={"input": "one"}).json()["object"] == "list"  # OpenAI's route


@pytest.mark.browser
def test_page_and_docs_work_below_the_prefix(open_page: "Callable[..., Page]", proxy: ProxyProcess) -> None:
    page = open_page(f"{proxy.url}{PREFIX}/", expected=["status of 403"])  # nginx shows no metrics to the outside
    assert page.title() == "Fast Embedding API"
    page.locator("#docs-link").click()
    page.locator(".opblock").first.wait_for()
    assert page.url == f"{proxy.url}{PREFIX}/docs"
    page.locator(".opblock-post .opblock-summary-control").first.click()
    page.locator("button.execute").first.click()
    assert f"{proxy.url}{PREFIX}/embed" in page.locator(".request-url pre").first.inner_text()
    page.locator(".live-responses-table tbody .response-col_status", has_text="200").wait_for()
