"""The Overview in a browser: it draws what the service reports, and says in words what it cannot."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.proxies import running_proxy
from tests.support.servers import ServerProcess, free_port, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

OpenPage = Callable[..., Page]
KEY = "a-key-of-the-operator-for-metrics"
OTHER_KEY = "a-key-of-a-caller-for-embeddings"
KEYS = {"API_KEYS": f"ops:{KEY}:metrics+embed,caller:{OTHER_KEY}:embed", "CLOSED_ROUTES": "metrics,models"}
CHARTS = 9
NONE = "\N{EN DASH}"
TICK = "() => document.dispatchEvent(new Event('visibilitychange'))"
"""The page asks at once when its tab is shown again: tests need not wait for its next round."""
DRAWN_POINTS = """() => [...document.querySelectorAll("canvas")].filter((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value, at) => at % 4 === 3 && value > 0);
}).length"""
"""Counts the canvases on which something is drawn."""


def next_report(page: Page) -> dict[str, Any]:
    """Let the page ask once more, and return the metrics that it got."""
    with page.expect_response(re.compile("/metrics$")) as found:
        page.evaluate(TICK)
    metrics: dict[str, Any] = found.value.json()
    return metrics


def figure_of(page: Page, chart: str, label: str, column: int = 0) -> str:
    """The text of a chart's table: of the series *label*, now (0) or the highest (1)."""
    card = page.locator(".chart-card", has=page.get_by_role("heading", name=chart, exact=True))
    return card.locator("tbody tr", has_text=label).locator("td").nth(column).inner_text()


def tiny_settings(models: Path, **settings: str) -> dict[str, str]:
    return {"MODELS_DIR": str(models), "DEFAULT_MODEL": "tiny/one", "REQUIRED_MODELS": "tiny/one", **settings}


@pytest.fixture
def tiny(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    return server_with(**tiny_settings(tiny_models))


def embed(server: ServerProcess, *texts: str, model: str = "tiny/one") -> None:
    body = {"texts": list(texts), "model_name": model}
    httpx.post(f"{server.url}/embed/batch", json=body).raise_for_status()


def test_header_names_the_service_its_version_and_its_health(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = open_page(tiny.url)
    expect(page.locator("#service-name")).to_have_text("Fast Embedding API")
    version = httpx.get(tiny.url, headers={"Accept": "application/json"}).json()["version"]
    expect(page.locator("#service-version")).to_have_text(f"v{version}")
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator(".status-words")).to_have_text("Healthy. It accepts work.")


def test_charts_draw_the_work_of_the_service(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = open_page(tiny.url)
    expect(page.locator("#health")).to_have_text("Healthy")
    embed(tiny, "one", "one two", "three")
    next_report(page)
    expect(page.locator(".chart-card canvas")).to_have_count(CHARTS)
    assert page.evaluate(DRAWN_POINTS) == CHARTS
    for chart, label in (("Requests and texts", "Texts"), ("Requests and texts", "Requests"), ("Tokens", "Tokens")):
        assert re.fullmatch(r"[\d,.]*[1-9][\d,.]*/s", figure_of(page, chart, label, 1)), label
    assert re.fullmatch(r"[\d.]+ m?s", figure_of(page, "Latency", "95th percentile", 1))
    labels = page.locator(".chart-frame").evaluate_all("(frames) => frames.map((frame) => frame.ariaLabel)")
    assert any(re.search(r"Chart of requests and texts\. Now: Texts [\d,.]+/s, Requests", label) for label in labels)


def test_a_service_without_work_has_words_instead_of_lines(open_page: OpenPage, tiny_models: Path) -> None:
    with running_server(**tiny_settings(tiny_models)) as server:
        page = open_page(server.url)
        expect(page.get_by_text("No requests on this route in the time shown.")).to_be_visible()
        expect(page.get_by_text("Nothing was refused since the service started. Quotas are off.")).to_be_visible()
        expect(page.get_by_text("No errors since the service started.")).to_be_visible()


def test_errors_are_listed_by_kind_in_words(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = open_page(tiny.url)
    expect(page.locator("#health")).to_have_text("Healthy")
    assert httpx.post(f"{tiny.url}/embed", json={"text": ""}).status_code == 400
    next_report(page)
    row = page.get_by_role("region", name="Errors by kind").locator("tr", has_text="invalid-input")
    expect(row).to_contain_text("The request was not valid")
    assert int(row.locator("td").nth(2).inner_text()) >= 1  # while the page was open
    assert figure_of(page, "Errors", "Client errors (4xx)") != "0"


def test_refusals_are_listed_with_their_reason(
    open_page: OpenPage, server_with: Callable[..., ServerProcess], tiny_models: Path
) -> None:
    server = server_with(**tiny_settings(tiny_models, ENABLE_RATE_LIMIT="true", RATE_LIMIT_REQUESTS="1"))
    page = open_page(server.url)
    expect(page.locator("#health")).to_have_text("Healthy")
    statuses = {httpx.post(f"{server.url}/embed", json={"text": "one"}).status_code for _ in range(3)}
    assert 429 in statuses
    next_report(page)
    expect(page.get_by_role("region", name="What is refused and why")).to_contain_text("quota")
    assert figure_of(page, "Errors", "Over a quota (429)") != "0"
    # A quota is no trouble of the service.
    expect(page.locator("#health")).to_have_text("Healthy")


def test_models_in_memory_have_a_timeline(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = open_page(tiny.url)
    expect(page.locator(".model", has_text="tiny/one")).to_contain_text("in memory")
    embed(tiny, "one", model="tiny/two")
    next_report(page)
    model = page.locator(".model", has_text="tiny/two")
    expect(model.locator(".timeline-span")).to_have_count(1)
    assert re.search("tiny/two was in memory: .* to ", model.locator(".timeline").get_attribute("aria-label") or "")
    expect(model.locator(".facts")).to_contain_text("Last used")


def test_metrics_and_docs_that_are_off_are_not_offered_and_the_rest_works(
    open_page: OpenPage, server_with: Callable[..., ServerProcess], tiny_models: Path
) -> None:
    server = server_with(**tiny_settings(tiny_models, ENABLE_METRICS="false", ENABLE_DOCS="false"))
    page = open_page(server.url, expected=["status of 403"])
    expect(page.locator("#docs-link")).to_be_hidden()
    expect(page.locator(".notices")).to_contain_text("Metrics are turned off.")
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator(".model")).to_contain_text("tiny/one")
    expect(page.locator(".chart-card").first).to_be_hidden()
    expect(page.locator("#key-dialog")).to_be_hidden()


def test_key_is_asked_for_kept_for_the_tab_and_removable(
    open_page: OpenPage, server_with: Callable[..., ServerProcess], tiny_models: Path
) -> None:
    server = server_with(**tiny_settings(tiny_models, **KEYS))
    page = open_page(server.url, expected=["status of 40[13]"])
    dialog = page.get_by_role("dialog", name="A key is required")
    expect(dialog).to_contain_text("only to callers with a key")
    field = dialog.get_by_label("API key or token")
    expect(field).to_be_focused()
    expect(page.locator("#health")).to_have_text("Healthy")  # not held up by the dialog

    field.fill("two words")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("A key contains only")
    field.fill(OTHER_KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("permission 'metrics'")
    field.fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator(".chart-card").first).to_be_visible()

    kept = "() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie, location.href]"
    session, local, cookie, address = page.evaluate(kept)
    assert KEY in session
    assert KEY not in f"{local}{cookie}{address}"
    assert KEY not in page.content()

    page.reload()
    expect(page.locator(".chart-card").first).to_be_visible()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Forget the key").click()
    assert page.evaluate("() => Object.values(sessionStorage)") == []
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".notices")).to_contain_text("The figures need a key.")
    assert "Authorization" not in page.locator("body").inner_text()  # words for programs
    page.get_by_role("button", name="Enter a key").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_no_missing_metric_breaks_the_page(open_page: OpenPage, tiny: ServerProcess) -> None:
    """Each answer of /metrics lacks another key, at the top or one level below."""
    whole = httpx.get(f"{tiny.url}/metrics", headers={"Accept": "application/json"}).json()
    paths: list[tuple[str, ...]] = [(key,) for key in whole]
    paths += [(key, inner) for key, value in whole.items() if isinstance(value, dict) for inner in value]
    answers = iter([without(whole, path) for path in paths])

    def answer(route: Route) -> None:
        route.fulfill(json=next(answers, whole))

    page = open_page(tiny.url)
    expect(page.locator("#health")).to_have_text("Healthy")
    page.route(re.compile("/metrics$"), answer)
    for _ in paths:
        next_report(page)
    assert next(answers, None) is None
    expect(page.locator("#health")).to_have_text("Healthy")


@pytest.mark.parametrize(
    "metrics",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"total_requests": 7, "uptime_seconds": 1.5}, id="an old version"),
        pytest.param({"models": None, "errors": [], "queue": "none", "endpoints": {"POST /embed": None}}, id="odd"),
    ],
)
def test_figures_that_are_not_reported_are_named_so(open_page: OpenPage, tiny: ServerProcess, metrics: Any) -> None:
    page = open_page(tiny.url)
    page.route(re.compile("/metrics$"), lambda route: route.fulfill(json=metrics))
    page.reload()
    expect(page.get_by_text("This is not reported by this version of the service.").first).to_be_visible()
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator(".model", has_text="tiny/one")).to_be_visible()


def without(metrics: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {key: value for key, value in metrics.items() if key != first}
    return {**metrics, first: without(metrics[first], tuple(rest))}


@pytest.mark.slow
def test_page_survives_a_restart_of_the_service(open_page: OpenPage, tiny_models: Path) -> None:
    settings = tiny_settings(tiny_models, PORT=str(free_port()))
    with running_server(**settings) as server:
        page = open_page(server.url, expected=["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"])
        embed(server, "five")
        expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator(".status-words")).to_have_text(
        re.compile(r"The service does not answer\. Trying again in \d+ s …")
    )
    expect(page.locator("#health")).to_have_text("No answer")
    expect(page.locator(".model", has_text="tiny/one")).to_contain_text("not known now")
    expect(page.get_by_text("Figures of the last answer.")).to_be_visible()
    expect(page.locator(".chart-card").first).to_be_visible()
    with running_server(**settings):
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("#health")).to_have_text("Healthy")
        expect(page.locator(".notices")).to_contain_text("The service was restarted at")
        expect(page.get_by_role("button", name="Try now")).to_be_hidden()


@pytest.mark.nginx
def test_page_works_behind_a_path_prefix(open_page: OpenPage, tiny: ServerProcess, tmp_path: Path) -> None:
    only_below = "if ($request_uri !~ ^/a/prefix/) { return 404; } rewrite ^/a/prefix(/.*)$ $1 last;"
    prefix = {r"(?m)^        location / \{": f"{only_below} location / {{"}
    with running_proxy(tmp_path, [tiny.url.removeprefix("http://")], prefix) as proxy:
        page = open_page(f"{proxy.url}/a/prefix/")
        expect(page.locator("#health")).to_have_text("Healthy")
        expect(page.locator(".chart-card canvas")).to_have_count(CHARTS)


def test_charts_without_their_library_have_words_and_figures(open_page: OpenPage, tiny: ServerProcess) -> None:
    page = open_page(tiny.url)
    page.route(re.compile("uPlot.*js"), lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.reload()
    expect(page.get_by_text("The charts' library could not be loaded.").first).to_be_visible()
    embed(tiny, "four")
    next_report(page)
    assert figure_of(page, "Requests and texts", "Texts", 1) != NONE
