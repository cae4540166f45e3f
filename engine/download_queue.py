"""Which downloads run and which wait: few at a time, a bounded number waiting, and a fair order between callers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

SLOTS = 2
"""Downloads at a time. More share the same network and disk, so they do not end sooner."""
MAX_WAITING = 16
"""Downloads that may wait. Each takes minutes, so later ones would only run into their callers' deadlines."""
MAX_WAITING_PER_CALLER = 4
"""Downloads that wait because of one caller: four callers are needed to fill the queue."""


class DownloadRefusedError(Exception):
    """Too many downloads wait, in all or for the caller *owner*, which started this one."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner


class LoadAbandonedError(Exception):
    """All callers that waited for a model left before its download started, or before there was a place for it."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """One download that waits.

    Attributes:
        owner: the caller that started it.
        callers: returns the callers that wait for it now.
        tag: its place in the order, see `DownloadQueue`.
        started: resolved with the caller whose slot it takes.
    """

    owner: str
    callers: Callable[[], Iterable[str]]
    is_required: bool
    tag: int
    started: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class DownloadQueue:
    """Gives downloads their slots. Each caller has one slot at most, so a slot is left for others.

    The order is start-time fair queueing with a cost of one per download: a caller's second download has the next tag
    after its first, while the first of a newcomer has the tag that is due now. A download that several callers wait for
    has the lowest of their tags. The downloads of required models come first, and no caller is charged for them.
    """

    def __init__(
        self,
        *,
        slots: int = SLOTS,
        max_waiting: int = MAX_WAITING,
        max_waiting_per_caller: int = MAX_WAITING_PER_CALLER,
    ) -> None:
        self.running = 0
        self.refused = 0
        self._slots = slots
        self._max_waiting = max_waiting
        self._max_waiting_per_caller = max_waiting_per_caller
        self._waiting: dict[str, _Ticket] = {}  # by model, in the order of arrival
        self._running_of: Counter[str] = Counter()
        self._tag = 0  # of the last download that has started
        self._last_tags: dict[str, int] = {}  # of callers whose last tag is not due yet

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(
        self, model: str, owner: str, callers: Callable[[], Iterable[str]], *, is_required: bool = False
    ) -> AsyncIterator[None]:
        """Wait for a slot, and keep it for the length of the block.

        Args:
            model: what is downloaded; no two downloads of one model are in the queue.
            owner: the caller that started it.
            callers: returns the callers that wait for it now; they may change.
            is_required: the operator requires the model, so no bound applies.

        Raises:
            DownloadRefusedError: too many downloads wait.
            LoadAbandonedError: `abandon` was called before it started.
        """
        ticket = _Ticket(owner, callers, is_required, self._next_tag(owner))
        self._waiting[model] = ticket
        self._start_waiting()
        if not ticket.started.done() and not is_required and self._is_over_bound(owner):
            del self._waiting[model]
            self.refused += 1
            raise DownloadRefusedError(owner)
        self._last_tags[owner] = ticket.tag
        try:
            await ticket.started
            yield
        finally:
            self._end(model, ticket)

    def join(self, model: str, caller: str) -> None:
        """Note that *caller*, too, waits for *model* if its download waits: it may be due earlier now."""
        if ticket := self._waiting.get(model):
            ticket.tag = min(ticket.tag, self._next_tag(caller))
            self._start_waiting()

    def abandon(self, model: str) -> None:
        """Drop the download of *model* if it waits: no caller waits for it."""
        if (ticket := self._waiting.get(model)) and not ticket.is_required and not ticket.started.done():
            del self._waiting[model]
            ticket.started.set_exception(LoadAbandonedError())

    def _end(self, model: str, ticket: _Ticket) -> None:
        """Give the slot back, or the place in the queue if the download has not started."""
        if self._waiting.get(model) is ticket:  # cancelled while it waited
            del self._waiting[model]
        started = ticket.started
        if started.done() and not started.cancelled() and started.exception() is None:
            self.running -= 1
            self._running_of[started.result()] -= 1
            self._running_of += Counter()  # removes zeros
        self._start_waiting()

    def _next_tag(self, caller: str) -> int:
        return max(self._tag, self._last_tags.get(caller, -1) + 1)

    def _is_over_bound(self, owner: str) -> bool:
        """Whether the waiting downloads, the new one included, are too many."""
        of_owner = sum(ticket.owner == owner for ticket in self._waiting.values())
        return len(self._waiting) > self._max_waiting or of_owner > self._max_waiting_per_caller

    def _start_waiting(self) -> None:
        """Start what is due, as long as slots are free."""
        while self.running < self._slots and (due := self._find_due()) is not None:
            model, charged = due
            ticket = self._waiting.pop(model)
            self.running += 1
            self._running_of[charged] += 1
            self._tag = max(self._tag, ticket.tag)
            self._last_tags = {caller: tag for caller, tag in self._last_tags.items() if tag >= self._tag}
            ticket.started.set_result(charged)
        if not self._waiting:
            self._last_tags.clear()  # no caller is ahead of another

    def _find_due(self) -> tuple[str, str] | None:
        """Return the model whose download is due, and the caller to charge; None: none may start."""
        for model, ticket in sorted(self._waiting.items(), key=lambda item: (not item[1].is_required, item[1].tag)):
            if ticket.started.cancelled():  # its task is about to end
                continue
            if ticket.is_required:
                return model, ""
            for caller in ticket.callers():
                if not self._running_of[caller]:
                    return model, caller
        return None
