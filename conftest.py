"""Options and fixtures of all tests; it stands here because `pytest test_api.py --base-url=...` needs the option."""

from collections.abc import Iterator

import httpx
import pytest

from tests.servers import running_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-url", default=None, help="test this running server instead of starting one")


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server with default settings: the given one, or one started for the session."""
    if given := request.config.getoption("--base-url"):
        yield str(given).rstrip("/")
        return
    with running_server() as server:
        yield server.url


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client
