"""Who is let in, who stands in line, and who is refused before his request is read."""

import asyncio
from typing import Any

import pytest
from litestar.types import Receive, Scope, Send
from structlog.testing import capture_logs

from engine.errors import OverloadedError
from tests.support.clock import ManualClock
from web import overload_guard
from web.overload_guard import MAX_STARTS_PER_ITERATION, MAX_WAIT_S, MAX_WAITING, OverloadGuard

FULL = OverloadedError("Work for 10 s is waiting.", retry_after_s=1)


class RunningService:
    """What lies behind the door: it notes who came in, and is full when a test says so."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.error: OverloadedError | None = None
        self.clock = ManualClock()
        self.counted: list[tuple[str, str | None]] = []
        self.guard = OverloadGuard(
            self,
            queued=frozenset({"/embed", "/embed/batch"}),
            unqueued=frozenset({"/tokenize"}),
            overload=lambda: self.error,
            count=self.count,
            clock=self.clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        self.entered.append(scope["state"]["number"])

    def count(self, endpoint: str, seconds: float, code: str | None) -> None:
        assert seconds == 0.0
        self.counted.append((endpoint, code))

    def ask(self, number: int = 0, **changes: Any) -> asyncio.Task[None]:
        return asyncio.create_task(self.guard(scope_of(number, **changes), never, never))  # type: ignore[arg-type]


async def never(*_: object) -> None:
    pytest.fail("the door neither reads nor answers")


def scope_of(number: int = 0, **changes: Any) -> Any:
    plain = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "state": {"number": number}}
    return {**plain, **changes}


@pytest.fixture
async def service() -> RunningService:
    return RunningService()


async def looks_at_the_sockets(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_work_is_let_in(service: RunningService) -> None:
    await service.ask(7)
    assert service.entered == [7]


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
@pytest.mark.parametrize("written", ["{}", "{}/", "/{}", "/{}//"])
async def test_work_is_refused_unread_while_the_service_is_full(
    service: RunningService, path: str, written: str
) -> None:
    service.error = FULL
    scope = scope_of(path=written.format(path))
    with pytest.raises(OverloadedError) as refused:
        await service.guard(scope, never, never)  # type: ignore[arg-type]
    assert refused.value is FULL
    assert scope["path_template"] == path
    assert service.entered == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"path": "/health"}, id="health"),
        pytest.param({"path": "/metrics", "method": "GET"}, id="metrics"),
        pytest.param({"path": "/tokenize"}, id="tokenize-needs-no-lane"),
        pytest.param({"method": "GET"}, id="wrong-method"),
        pytest.param({"type": "lifespan"}, id="lifespan"),
    ],
)
async def test_all_else_is_let_in_at_once(service: RunningService, changes: dict[str, Any]) -> None:
    service.error = FULL
    await service.ask(1, **changes)
    assert service.entered == [1]


async def test_few_come_in_between_two_looks_at_the_sockets(service: RunningService) -> None:
    asking = [service.ask(number) for number in range(3 * MAX_STARTS_PER_ITERATION)]
    await looks_at_the_sockets(1)
    assert service.entered == list(range(MAX_STARTS_PER_ITERATION))
    await asyncio.gather(*asking)
    assert service.entered == list(range(3 * MAX_STARTS_PER_ITERATION))


async def test_line_is_dismissed_when_the_service_becomes_full(service: RunningService) -> None:
    asking = [service.ask(number) for number in range(10 * MAX_STARTS_PER_ITERATION)]
    await looks_at_the_sockets(1)
    service.error = FULL
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers == [None] * MAX_STARTS_PER_ITERATION + [FULL] * 9 * MAX_STARTS_PER_ITERATION


async def test_nobody_stands_in_line_for_too_long(service: RunningService) -> None:
    asking = [service.ask(number) for number in range(2 * MAX_STARTS_PER_ITERATION)]
    await looks_at_the_sockets(1)
    service.clock.now_s += MAX_WAIT_S + 0.1
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers[MAX_STARTS_PER_ITERATION:]] == [
        OverloadedError
    ] * MAX_STARTS_PER_ITERATION


async def test_line_has_an_end(service: RunningService) -> None:
    asking = [service.ask(number) for number in range(MAX_STARTS_PER_ITERATION + MAX_WAITING + 1)]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers.pop(), OverloadedError)
    assert answers == [None] * (MAX_STARTS_PER_ITERATION + MAX_WAITING)


async def test_who_leaves_the_line_takes_nobody_s_turn(service: RunningService) -> None:
    asking = [service.ask(number) for number in range(MAX_STARTS_PER_ITERATION + 2)]
    await looks_at_the_sockets(1)
    asking[MAX_STARTS_PER_ITERATION].cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert service.entered == [*range(MAX_STARTS_PER_ITERATION), MAX_STARTS_PER_ITERATION + 1]


async def test_refusals_are_told_by_one_line_for_all(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload_guard, "LOG_INTERVAL_S", 0)
    service.error = FULL
    with capture_logs() as lines:
        await asyncio.gather(*(service.ask() for _ in range(5)), return_exceptions=True)
        await looks_at_the_sockets(5)
    assert [(line["event"], line["requests"]) for line in lines] == [("requests_refused", 5)]


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
async def test_server_may_turn_work_away_itself_and_it_is_counted(service: RunningService, path: str) -> None:
    assert service.guard.reject_early(path) is None
    service.error = FULL
    assert service.guard.reject_early(path) is FULL
    assert service.counted == [(f"POST {path}", "overloaded")]


async def test_server_turns_away_nothing_else(service: RunningService) -> None:
    service.error = FULL
    for path in ("/tokenize", "/health", "/embed?x=1", "/nothing"):
        assert service.guard.reject_early(path) is None
    assert service.counted == []
