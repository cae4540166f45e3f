"""Options and fixtures of all tests; it stands here because `pytest test_api.py --base-url=...` needs the option."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.servers import running_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-url", default=None, help="test this running server instead of starting one")


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with default settings: the given one, or one started for the session."""
    if given := request.config.getoption("--base-url"):
        yield str(given).rstrip("/")
        return
    with running_server(log=tmp_path_factory.mktemp("server") / "log") as server:
        yield server.url


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client


@pytest.fixture
def server_log(tmp_path: Path) -> Path:
    """Where a server that a test starts by itself writes its log."""
    return tmp_path / "server.log"
