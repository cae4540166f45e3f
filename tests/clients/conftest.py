"""Servers for the programs of tests/clients/programs; each is shared by all tests of a pytest worker."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import openai_clients, other_clients
from tests.clients.support import KEY, Client
from tests.support.servers import ServerProcess, held_server

CLIENTS = [*openai_clients.CLIENTS, *other_clients.CLIENTS]
"""All tests of a client run one after the other, and share its process."""


@pytest.fixture(scope="module", params=CLIENTS, ids=str)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Each client in turn."""
    yield request.param
    request.param.stop()


@pytest.fixture
def server(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    """A server with the bundled model and tiny ones, and without keys."""
    return server_with(MODELS_DIR=str(tiny_models))


@pytest.fixture
def keyed_server(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    """A server that asks for KEY."""
    return server_with(MODELS_DIR=str(tiny_models), API_KEYS=f"tests:{KEY}")


@pytest.fixture(scope="session")
def full_server() -> Iterator[ServerProcess]:
    """A server for `run_refused`, whose queue is soon full."""
    with held_server(MAX_QUEUE_SECONDS="0.05", THREAD_POOL_WORKERS="1") as server:
        yield server
