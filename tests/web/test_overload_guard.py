"""The overload guard: what it admits, what waits, and what it rejects before the request is read."""

import asyncio
import math
from typing import Any

import pytest
from litestar.types import Receive, Scope, Send
from structlog.testing import capture_logs

from engine.errors import OverloadedError
from engine.fair_queue import Caller
from engine.ledger import SHARE_OF_FREE
from telemetry.answered_request import AnsweredRequest
from tests.support.clock import ManualClock
from web import overload_guard
from web.dialects import Rejection
from web.overload_guard import MAX_ITERATION_S, MAX_WAIT_S, MAX_WAITING, MAX_WOKEN, OverloadGuard, RouteQueue
from web.request_context import context_of

FULL = OverloadedError("Work for 10 s is waiting.", retry_after_s=1)
CALLER, OTHER = ("192.0.2.1",), ("192.0.2.2",)
CLIENT = CALLER[0], 1


class GuardedApp:
    """The app behind the guard: it records the requests that enter, and is full when a test says so."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.error: OverloadedError | None = None
        self.full_for: set[Caller] = {CALLER, OTHER}
        self.clock = ManualClock()
        self.seconds = MAX_ITERATION_S / MAX_WOKEN  # that each request takes of the event loop
        self.counted: list[tuple[str, str | None]] = []
        self.keeps_results = False
        self.answers = iter(list[int]())
        lanes = RouteQueue(
            is_tight=lambda: self.error is not None,
            overload=lambda caller: self.error if caller in self.full_for else None,
            has_results=lambda: self.keeps_results,
        )
        never_full = RouteQueue(is_tight=lambda: False, overload=lambda _: None)
        self.guard = OverloadGuard(
            self,
            queues={"/embed": lanes, "/embed/batch": lanes, "/tokenize": never_full},
            identify=lambda client, _: (client[0],) if client else None,
            locate=lambda *_: OTHER,
            observe=self.observe,
            clock=self.clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        self.entered.append(scope["state"]["number"])
        self.clock.now_s += self.seconds
        if (status := next(self.answers, None)) is not None:
            if status != 200:
                context_of(scope).problem_code = {503: "overloaded", 400: "invalid-input"}[status]
                self.clock.now_s += 0.005
            await send({"type": "http.response.start", "status": status, "headers": []})

    def observe(self, answered: AnsweredRequest) -> None:
        assert (answered.seconds, answered.dialect) == (0.0, "native")
        self.counted.append((answered.endpoint, answered.problem_code))

    def ask(self, number: int = 0, **changes: Any) -> asyncio.Task[None]:
        return asyncio.create_task(self.guard(scope_of(number, **changes), never, never))  # type: ignore[arg-type]


async def never(*_: object) -> None:
    pytest.fail("the guard neither reads nor answers")


def scope_of(number: int = 0, **changes: Any) -> Any:
    plain = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "client": CLIENT}
    return {**plain, "state": {"number": number}, **changes}


@pytest.fixture
async def service() -> GuardedApp:
    return GuardedApp()


async def loop_iterations(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_work_is_admitted(service: GuardedApp) -> None:
    await service.ask(7)
    assert service.entered == [7]


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
@pytest.mark.parametrize("written", ["{}", "{}/", "/{}", "/{}//"])
async def test_work_is_rejected_unread_while_the_service_is_full(service: GuardedApp, path: str, written: str) -> None:
    service.error = FULL
    scope = scope_of(path=written.format(path))
    with pytest.raises(OverloadedError) as rejected:
        await service.guard(scope, never, never)  # type: ignore[arg-type]
    assert rejected.value is FULL
    assert scope["path_template"] == path
    assert service.entered == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"path": "/health"}, id="health"),
        pytest.param({"path": "/metrics", "method": "GET"}, id="metrics"),
        pytest.param({"path": "/tokenize"}, id="route-with-another-queue"),
        pytest.param({"method": "GET"}, id="wrong-method"),
        pytest.param({"type": "lifespan"}, id="lifespan"),
    ],
)
async def test_other_requests_are_admitted_at_once(service: GuardedApp, changes: dict[str, Any]) -> None:
    service.error = FULL
    await service.ask(1, **changes)
    assert service.entered == [1]


async def test_few_requests_are_admitted_per_iteration_of_the_event_loop(service: GuardedApp) -> None:
    asking = [service.ask(number) for number in range(3 * MAX_WOKEN)]
    await loop_iterations(1)
    assert service.entered == list(range(MAX_WOKEN))
    await asyncio.gather(*asking)
    assert service.entered == list(range(3 * MAX_WOKEN))


async def test_more_requests_start_at_once_if_they_take_less_time(service: GuardedApp) -> None:
    service.seconds = MAX_ITERATION_S / 100
    asking = [service.ask(number) for number in range(10 * MAX_WOKEN)]
    await loop_iterations(1)
    assert service.entered == list(range(10 * MAX_WOKEN))
    await asyncio.gather(*asking)


async def test_waiting_requests_are_rejected_when_the_service_becomes_full(service: GuardedApp) -> None:
    asking = [service.ask(number) for number in range(10 * MAX_WOKEN)]
    await loop_iterations(1)
    service.error = FULL
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers == [None] * MAX_WOKEN + [FULL] * 9 * MAX_WOKEN


async def test_requests_that_wait_too_long_are_rejected(service: GuardedApp) -> None:
    asking = [service.ask(number) for number in range(2 * MAX_WOKEN)]
    await loop_iterations(1)
    service.clock.now_s += MAX_WAIT_S + 0.1
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers[MAX_WOKEN:]] == [OverloadedError] * MAX_WOKEN


async def test_requests_of_a_caller_are_rejected_when_too_many_wait(service: GuardedApp) -> None:
    share = MAX_WAITING * SHARE_OF_FREE // (1 + SHARE_OF_FREE)
    asking = [service.ask(number) for number in range(MAX_WOKEN + share + 1)]
    await loop_iterations(1)
    newcomer = service.ask(-1, client=(OTHER[0], 1))
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers.pop(), OverloadedError)
    assert answers == [None] * (MAX_WOKEN + share)
    await newcomer
    assert service.entered.index(-1) <= 3 * MAX_WOKEN


async def test_only_callers_at_their_share_are_rejected(service: GuardedApp) -> None:
    service.error, service.full_for = FULL, {CALLER}
    for target in ("/embed", "/embed?api-version=1"):
        assert service.guard.reject_early(target, CLIENT, []) == Rejection(FULL, None)
    assert service.guard.reject_early("/embed", (OTHER[0], 1), []) is None
    assert service.guard.reject_early("/embed", None, []) is None  # authentication has to find out who it is
    await service.ask(7, client=(OTHER[0], 1))
    assert service.entered == [7]


async def test_cancelled_request_does_not_use_a_slot(service: GuardedApp) -> None:
    asking = [service.ask(number) for number in range(MAX_WOKEN + 2)]
    await loop_iterations(1)
    asking[MAX_WOKEN].cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert service.entered == [*range(MAX_WOKEN), MAX_WOKEN + 1]


async def test_requests_that_never_start_do_not_delay_the_next_one_of_their_caller(service: GuardedApp) -> None:
    client = (OTHER[0], 1)
    starting = [service.ask(number) for number in range(MAX_WOKEN)]
    flood = [service.ask(number) for number in range(100)]
    left = [service.ask(-2, client=client) for _ in range(100)]
    await loop_iterations(1)
    for request in left:
        request.cancel()
    later = service.ask(-1, client=client)
    await asyncio.gather(*starting, *left, *flood, later, return_exceptions=True)
    assert service.entered.index(-1) <= 3 * MAX_WOKEN
    assert -2 not in service.entered


async def test_rejections_are_logged_in_one_line(service: GuardedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload_guard, "LOG_INTERVAL_S", 0)
    service.error = FULL
    with capture_logs() as lines:
        await asyncio.gather(*(service.ask() for _ in range(5)), return_exceptions=True)
        await loop_iterations(5)
    assert [(line["event"], line["requests"]) for line in lines] == [("requests_refused", 5)]


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
async def test_server_may_reject_work_early_and_it_is_counted(service: GuardedApp, path: str) -> None:
    assert service.guard.reject_early(path, CLIENT, []) is None
    service.error = FULL
    assert service.guard.reject_early(path, CLIENT, []) == Rejection(FULL, None)
    assert service.counted == [(f"POST {path}", "overloaded")]


async def test_server_rejects_nothing_else_early(service: GuardedApp) -> None:
    service.error = FULL
    for path in ("/tokenize", "/health", "/health?x=/embed", "/nothing"):
        assert service.guard.reject_early(path, CLIENT, []) is None
    assert service.counted == []


async def test_answers_are_sent_out_of_turn_only_while_nobody_waits(service: GuardedApp) -> None:
    guard, clock = service.guard, service.clock
    assert guard.may_start_now("/embed")
    service.ask(1)
    guard.note_start()
    assert guard.may_start_now("/embed")
    clock.now_s += MAX_ITERATION_S
    assert not guard.may_start_now("/embed")  # then sockets are read again
    await loop_iterations(1)
    assert service.entered == []  # it waits, too
    await loop_iterations(3)
    assert service.entered == [1]
    assert guard.may_start_now("/embed")
    service.error = FULL
    assert not guard.may_start_now("/embed")
    assert guard.may_start_now("/tokenize")


# --- Results that are kept ----------------------------------------------------------------------------------------

SMALL = [(b"content-length", b"20")]


async def drop(_: object) -> None: ...


def full_but_keeping(service: GuardedApp, *answers: int) -> None:
    """Let the queue be full, although results are kept; the app answers with these statuses."""
    service.error, service.keeps_results, service.answers = FULL, True, iter(answers)


async def enter(service: GuardedApp, **changes: Any) -> Any:
    scope = scope_of(**{"headers": SMALL, **changes})
    await service.guard(scope, never, drop)  # type: ignore[arg-type]
    return context_of(scope)


async def test_small_request_is_read_although_the_queue_is_full_if_results_are_kept(service: GuardedApp) -> None:
    full_but_keeping(service, *[200] * 50)
    for number in range(50):
        assert service.guard.reject_early("/embed", CLIENT, SMALL) is None
        context = await enter(service, state={"number": number})
        assert context.miss_error is FULL
        assert not context.logged_elsewhere
        await asyncio.sleep(0)
    assert service.entered == list(range(50))
    assert service.counted == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"headers": []}, id="unknown length"),
        pytest.param({"headers": [(b"content-length", b"1000000")]}, id="large"),
        pytest.param({"headers": [*SMALL, (b"cache-control", b"no-cache")]}, id="no-cache"),
    ],
)
async def test_other_requests_are_rejected_unread_although_results_are_kept(
    service: GuardedApp, changes: dict[str, Any]
) -> None:
    full_but_keeping(service)
    assert service.guard.reject_early("/embed", CLIENT, changes["headers"]) == Rejection(FULL, None)
    with pytest.raises(OverloadedError) as rejected:
        await enter(service, **changes)
    assert rejected.value is FULL


async def test_refusals_by_the_app_are_logged_as_the_guards_own_and_end_in_them(
    service: GuardedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload_guard, "LOG_INTERVAL_S", 0)
    monkeypatch.setattr(overload_guard, "MAX_ITERATION_S", math.inf)  # all in one iteration of the event loop
    service.seconds = 0
    full_but_keeping(service, *[503] * 50)
    with capture_logs() as lines:
        while service.guard.reject_early("/embed", CLIENT, SMALL) is None:
            assert (await enter(service)).logged_elsewhere
        with pytest.raises(OverloadedError) as rejected:
            await enter(service)
        await loop_iterations(5)
    assert rejected.value is FULL
    assert 1 <= len(service.entered) < 50
    assert [(line["event"], line["requests"]) for line in lines] == [("requests_refused", len(service.entered) + 2)]
    other = (OTHER[0], 1)
    assert service.guard.reject_early("/embed", other, SMALL) is None  # the room is shared fairly


async def test_other_errors_of_the_app_are_logged_as_usual(service: GuardedApp) -> None:
    full_but_keeping(service, 400)
    with capture_logs() as lines:
        assert not (await enter(service)).logged_elsewhere
    assert lines == []


async def test_waiting_requests_that_may_be_answered_stay_when_the_service_becomes_full(service: GuardedApp) -> None:
    large = [(b"content-length", b"1000000")]
    asking = [
        asyncio.create_task(service.guard(scope_of(number, headers=SMALL if number % 2 else large), never, drop))  # type: ignore[arg-type]
        for number in range(10 * MAX_WOKEN)
    ]
    await loop_iterations(1)
    full_but_keeping(service, *[200] * 100)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    later = range(MAX_WOKEN, 10 * MAX_WOKEN)
    assert [answers[number] for number in later] == [None if number % 2 else FULL for number in later]


async def test_request_of_a_caller_with_room_in_the_queue_is_no_lookup(service: GuardedApp) -> None:
    full_but_keeping(service, *[503] * 50)
    service.full_for = {CALLER}
    for _ in range(50):
        context = await enter(service, client=(OTHER[0], 1))
        assert (context.miss_error, context.logged_elsewhere) == (None, False)
        await asyncio.sleep(0)
    assert len(service.entered) == 50
