"""Options and fixtures of all tests. It is in the root folder because test_api.py needs the option --base-url, too."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.redis_servers import RedisServer, running_redis
from tests.support.servers import NO_HUB, ServerPool, ServerProcess, running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEFAULT_MARKERS = "not slow and not network and not container"
"""What `-m` is without the option; see addopts in pyproject.toml."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--base-url", default=None, type=_url, help="test this running server (URL or host:port) instead of a new one"
    )


def _url(text: str) -> str:
    return (text if "://" in text else f"http://{text}").rstrip("/")


def pytest_configure(config: pytest.Config) -> None:
    """End the run at once if no server answers at --base-url."""
    if (url := config.getoption("--base-url")) and not hasattr(config, "workerinput"):
        try:
            httpx.get(f"{url}/health", timeout=10)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise pytest.UsageError(f"No server answers at --base-url {url} ({error}).") from None


@pytest.hookimpl(optionalhook=True)  # `pytest test_api.py --base-url=...` needs no pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Make `-n auto` use this process for named files, `-k` and listings, which starts sooner; else use all cores."""
    option = config.option
    is_a_part = getattr(option, "file_or_dir", None) or getattr(option, "keyword", "")
    only_lists = any(getattr(option, name, False) for name in ("showfixtures", "collectonly", "markers"))
    return 0 if is_a_part or only_lists else None  # None: the number of cores


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """State what the default run leaves out."""
    if config.option.markexpr == DEFAULT_MARKERS:
        terminalreporter.write_line(
            "Left out: tests marked slow (Ray, schemathesis, fuzzing, drills), network and container. "
            "Run them with ./run.sh test -m slow, -m network or -m container."
        )


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """`create_app` configures the logs of the whole process, on an output that pytest closes after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if structlog := sys.modules.get("structlog"):  # with --base-url, it need not be installed
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with default settings and without a hub: --base-url, or one started for the session."""
    if given := request.config.getoption("--base-url"):
        yield str(given)
        return
    with running_server(HF_ENDPOINT=NO_HUB, HUB_CACHE_DIR=str(tmp_path_factory.mktemp("hub"))) as server:
        yield server.url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[httpx.Client]:
    """A client of `base_url`: one for all tests, as making its TLS context takes 25 ms."""
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def _server_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    pool = ServerPool(HF_ENDPOINT=NO_HUB, HUB_CACHE_DIR=str(tmp_path_factory.mktemp("pool_hub")))
    yield pool
    pool.close()


@pytest.fixture
def server_with(_server_pool: ServerPool) -> Callable[..., ServerProcess]:
    """Returns a ready server with the settings given, such as `server_with(MAX_BATCH_SIZE="4")`; without a hub.

    The process is shared by all tests of this worker that give the same settings: for tests that leave the server as
    it was. Other tests use `running_server` of tests/support/servers.py. Ask for the server in each test (in a fixture
    of function scope): the pool stops servers that were not asked for recently.
    """
    return _server_pool.get


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(_shared_redis: RedisServer) -> RedisServer:
    """An empty Redis, shared by tests that do not stop or configure it."""
    _shared_redis.run("FLUSHALL")
    return _shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that the test may kill, freeze and configure."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for MODELS_DIR with the tiny models `tiny/one` and `tiny/two`, to be shared by servers of the pool."""
    from tests.support.tiny import TinyModel  # noqa: PLC0415 - with --base-url, onnx need not be installed

    folder = tmp_path_factory.mktemp("tiny_models")
    for name in ("tiny/one", "tiny/two"):
        TinyModel(name).write(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser that the tests of a module share. Each test opens pages in a profile of its own."""
    from tests.support.browsers import running_browser  # noqa: PLC0415 - few tests need it, and it takes 0.1 s

    with running_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Returns a page of a server, such as `open_page(f"{url}/", width=360, theme="dark")`.

    At its end, the test fails if a page logged an error or a warning, raised one, or contacted another origin. Expected
    ones are named by a pattern: `open_page(url, expected=["status of 401"])`.
    """
    from tests.support.browsers import OpenedPages  # noqa: PLC0415

    pages = OpenedPages(browser)
    yield pages.open
    pages.close()
