"""The running service: how its start succeeds, fails, or is cut short by a shutdown."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from structlog.testing import capture_logs

from assembly import start_checks
from assembly.app import parts_of
from assembly.lifecycle import Lifecycle
from engine.encoder import Encoder, load_encoder
from engine.fair_queue import ANYONE
from tests.support.apps import settings_of

Load = Callable[..., Encoder]


@pytest.fixture
def stops() -> list[None]:
    """One entry per time that the service has stopped its process."""
    return []


@pytest.fixture
def new_app(tiny_models: Path, stops: list[None]) -> Callable[[Load], Litestar]:
    """Returns a function that creates an app with this function for loading its model `tiny/one`."""
    from main import create_app  # noqa: PLC0415 - importing main builds an app, too

    def create(load: Load = load_encoder) -> Litestar:
        settings = settings_of(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one")
        return create_app(settings, load=load, stop=lambda: stops.append(None))

    return create


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")


async def test_parts_exist_only_while_the_app_runs(new_app: Callable[..., Litestar]) -> None:
    app = new_app()
    service = parts_of(app).service
    async with app.lifespan():
        await service.lifecycle.wait_for_start()
        assert service.parts.models.loaded == ("tiny/one",)
        assert (service.lifecycle.phase, service.lifecycle.failure) == ("healthy", None)
    with pytest.raises(RuntimeError, match="not running"):
        _ = service.parts
    assert (service.lifecycle.phase, service.queues["queued"].overload(ANYONE)) == ("draining", None)


async def test_model_that_cannot_be_loaded_stops_the_process_with_the_reason(
    new_app: Callable[..., Litestar], stops: list[None]
) -> None:
    app = new_app(fail)
    lifecycle = parts_of(app).service.lifecycle
    async with app.lifespan():
        await lifecycle.wait_for_start()
        assert lifecycle.failure is not None
        assert lifecycle.failure.startswith("The model 'tiny/one' cannot be loaded now: ")
        assert (lifecycle.phase, len(stops)) == ("starting", 1)


async def test_unexpected_error_at_the_start_stops_the_process_and_is_logged(
    new_app: Callable[..., Litestar], stops: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_checks, "memory_limit", fail)
    app = new_app()
    lifecycle = parts_of(app).service.lifecycle
    with capture_logs() as logs:
        async with app.lifespan():
            await lifecycle.wait_for_start()
            assert (lifecycle.failure, len(stops)) == (
                "an unexpected error; the log's event start_failed has the details",
                1,
            )
    [failed] = [line for line in logs if line["event"] == "start_failed"]
    assert str(failed["exc_info"]) == "broken"


async def test_start_that_fails_after_a_signal_does_not_send_another_one(
    new_app: Callable[..., Litestar], stops: list[None]
) -> None:
    """The server takes a second signal for the request to end at once, without answering accepted requests."""
    is_loading, may_fail = threading.Event(), threading.Event()

    def load(*_: Any, **__: Any) -> Any:
        is_loading.set()
        assert may_fail.wait(10)
        raise RuntimeError("broken")

    app = new_app(load)
    lifecycle = parts_of(app).service.lifecycle
    with capture_logs() as logs:
        async with app.lifespan(), asyncio.timeout(10):
            await asyncio.to_thread(is_loading.wait, 10)
            lifecycle.start_draining()  # as the server does when it receives the signal
            may_fail.set()
            while all(line["event"] != "start_failed" for line in logs):  # noqa: ASYNC110 - a log line sets no event
                await asyncio.sleep(0)
    assert (lifecycle.phase, lifecycle.failure, stops) == ("draining", None, [])


async def test_service_that_drains_before_it_has_started_never_becomes_healthy() -> None:
    lifecycle = Lifecycle()
    waiting = asyncio.create_task(lifecycle.wait_for_start())
    lifecycle.start_draining()
    await waiting
    lifecycle.finish_start()
    assert lifecycle.phase == "draining"
