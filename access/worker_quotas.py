"""Quotas that the workers of one service share: their supervisor counts, and each worker asks it.

`QuotaHandlers` is the supervisor's side, `WorkerQuotas` the workers'. A charge is a notice without an answer. Messages
of one worker arrive in the order in which it sent them, so a charge counts before that worker's next request.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from access.quotas import MemoryQuotas, Quota, QuotaState, ShareKeys, charged_quotas, quotas_of
from access.shared_quotas import CHECK_INTERVAL_S, SharedQuotas
from host.message_channel import ChannelClosedError, Handler, MessageChannel, RemoteCallError

TIMEOUT_S = 1.0
"""Seconds in which the supervisor must answer. It does within a millisecond; one that is stopped never does."""
MAX_STORES = 2
"""Limits that are counted at a time: those before a reload, and those after it."""
NO_LIMIT_S = 3600.0
"""The channel's own time limit, far above `TIMEOUT_S`: `SharedQuotas` limits the time."""
TAKE: Final = "quota.take"
CHARGE: Final = "quota.charge"
CHECK: Final = "quota.check"


class _Limits(msgspec.Struct, array_like=True, frozen=True):
    """The arguments of `quotas_of`."""

    requests: int
    tokens: int | None
    window_s: int


class _Take(msgspec.Struct, array_like=True, frozen=True):
    limits: _Limits
    keys: ShareKeys


class _Charge(msgspec.Struct, array_like=True, frozen=True):
    limits: _Limits
    keys: ShareKeys
    tokens: int


class _Taken(msgspec.Struct, array_like=True, frozen=True):
    is_admitted: bool
    used: tuple[int, ...]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_take: Final = msgspec.msgpack.Decoder(_Take).decode
_decode_charge: Final = msgspec.msgpack.Decoder(_Charge).decode
_decode_taken: Final = msgspec.msgpack.Decoder(_Taken).decode


class QuotaHandlers:
    """Answers all workers from one store in memory.

    Workers with other limits, as while a reload replaces them one by one, do not share counts.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Count nothing yet; *clock* returns monotonic seconds."""
        self._clock = clock
        self._stores: OrderedDict[_Limits, MemoryQuotas] = OrderedDict()
        """By limits, latest last."""

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers for the channel of each worker."""
        return {TAKE: self._take, CHARGE: self._charge, CHECK: bytes}

    def _take(self, payload: bytes) -> bytes:
        asked = _decode_take(payload)
        state = self._store(asked.limits).take_now(asked.keys)
        return _encode(_Taken(state.is_admitted, state.used))

    def _charge(self, payload: bytes) -> bytes:
        charge = _decode_charge(payload)
        self._store(charge.limits).charge(charge.keys, charge.tokens)
        return b""

    def _store(self, limits: _Limits) -> MemoryQuotas:
        if (store := self._stores.get(limits)) is None:
            quotas = quotas_of(requests=limits.requests, tokens=limits.tokens, window_s=limits.window_s)
            store = self._stores[limits] = MemoryQuotas(quotas, clock=self._clock)
        self._stores.move_to_end(limits)
        while len(self._stores) > MAX_STORES:
            self._stores.popitem(last=False)
        return store


class WorkerQuotas(SharedQuotas):
    """Asks the supervisor, and counts in the memory of this worker while the supervisor does not answer."""

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        *,
        channel: MessageChannel,
        memory: MemoryQuotas,
        timeout_s: float = TIMEOUT_S,
        pause: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(CHECK_INTERVAL_S),
    ) -> None:
        """Ask nothing before `running`; *channel* leads to the supervisor, the rest is as for `SharedQuotas`."""
        super().__init__(quotas, store="supervisor", memory=memory, timeout_s=timeout_s, pause=pause)
        self._channel = channel
        units = {quota.name: quota.units for quota in quotas}
        self._limits = _Limits(units["requests"], units.get("tokens"), quotas[0].window_s)

    def charge(self, keys: ShareKeys, tokens: int) -> None:
        """Charge the tokens at once: before the answer, after which the caller may go on with another worker."""
        if self.fallback_reason is not None or not self._send_charge(keys, tokens):
            super().charge(keys, tokens)

    async def _take(self, keys: ShareKeys) -> QuotaState:
        taken = _decode_taken(await self._channel.call(TAKE, _encode(_Take(self._limits, keys)), timeout_s=NO_LIMIT_S))
        return QuotaState(charged_quotas(self.quotas, keys), taken.used, is_admitted=taken.is_admitted)

    async def _charge(self, keys: ShareKeys, tokens: int) -> None:
        if not self._send_charge(keys, tokens):
            raise ChannelClosedError

    def _send_charge(self, keys: ShareKeys, tokens: int) -> bool:
        return self._channel.notify(CHARGE, _encode(_Charge(self._limits, keys, tokens)))

    async def _check(self) -> None:
        await self._channel.call(CHECK, timeout_s=NO_LIMIT_S)

    async def _close(self) -> None:
        """Leave the channel open: it is not this object's."""

    def _is_expected(self, error: Exception) -> bool:
        return isinstance(error, ChannelClosedError | RemoteCallError) or super()._is_expected(error)
