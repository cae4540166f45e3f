"""Options and fixtures of all tests; it stands here because `pytest test_api.py --base-url=...` needs the option."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.servers import NO_HUB, ServerPool, ServerProcess, running_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-url", default=None, help="test this running server instead of starting one")


@pytest.hookimpl(optionalhook=True)  # `pytest test_api.py --base-url=...` needs no pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """For `-n auto`, as `./run.sh test` has it: what is named on the command line runs here, all tests on all cores."""
    is_a_part = config.option.file_or_dir or config.option.keyword
    return 0 if is_a_part else None  # None: as many as there are cores


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
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for MODELS_DIR with the tiny models `tiny/one` and `tiny/two`, to be shared by servers of the pool."""
    from tests.support.tiny import TinyModel  # noqa: PLC0415 - with --base-url, onnx need not be installed

    folder = tmp_path_factory.mktemp("tiny_models")
    for name in ("tiny/one", "tiny/two"):
        TinyModel(name).write(folder)
    return folder
