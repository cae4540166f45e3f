"""Options and fixtures of all tests; it stands here because `pytest test_api.py --base-url=...` needs the option."""

import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.support.servers import running_server

NO_HUB = "http://127.0.0.1:9"
"""Nothing listens on the port `discard`: a hub that refuses at once, on every machine."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-url", default=None, help="test this running server instead of starting one")


@pytest.hookimpl(optionalhook=True)  # `pytest test_api.py --base-url=...` needs no pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """For `-n auto`, as `./run.sh test` has it: what is named on the command line runs here, all tests on all cores."""
    is_a_part = config.option.file_or_dir or config.option.keyword
    return 0 if is_a_part else None  # None: as many as there are cores


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """What sets up logs does so for the whole process, and for an output that pytest closes after the test."""
    yield
    if structlog := sys.modules.get("structlog"):  # with --base-url, it need not be installed
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with default settings: the given one, or one started for the session, without a hub."""
    if given := request.config.getoption("--base-url"):
        yield str(given).rstrip("/")
        return
    with running_server(HF_ENDPOINT=NO_HUB, HUB_CACHE_DIR=str(tmp_path_factory.mktemp("hub"))) as server:
        yield server.url


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client
