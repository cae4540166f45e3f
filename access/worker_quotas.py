"""Quotas that the workers of one service share: their supervisor counts, and each worker asks it.

`QuotaHandlers` is the supervisor's side, `WorkerQuotas` the workers'. A charge is a notice without an answer. Messages
of one worker arrive in the order in which it sent them, so a charge counts before that worker's next request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from access.quotas import MemoryQuotas, Quota, QuotaState, ShareKeys, charged_quotas
from access.shared_quotas import CHECK_INTERVAL_S, SharedQuotas
from host.message_channel import ChannelClosedError, Handler, MessageChannel, RemoteCallError

TIMEOUT_S = 1.0
"""Seconds in which the supervisor must answer. It does within a millisecond; one that is stopped never does."""
NO_LIMIT_S = 3600.0
"""The channel's own time limit, far above `TIMEOUT_S`: `SharedQuotas` limits the time."""
TAKE: Final = "quota.take"
CHARGE: Final = "quota.charge"
CHECK: Final = "quota.check"


class _Charge(msgspec.Struct, array_like=True, frozen=True):
    keys: ShareKeys
    tokens: int


class _Taken(msgspec.Struct, array_like=True, frozen=True):
    is_admitted: bool
    used: tuple[int, ...]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_keys: Final = msgspec.msgpack.Decoder(ShareKeys).decode
_decode_charge: Final = msgspec.msgpack.Decoder(_Charge).decode
_decode_taken: Final = msgspec.msgpack.Decoder(_Taken).decode


class QuotaHandlers:
    """Answers all workers from one store in memory."""

    def __init__(self, memory: MemoryQuotas) -> None:
        """Count in *memory*."""
        self._memory = memory

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers for the channel of each worker."""
        return {TAKE: self._take, CHARGE: self._charge, CHECK: bytes}

    def _take(self, payload: bytes) -> bytes:
        state = self._memory.take_now(_decode_keys(payload))
        return _encode(_Taken(state.is_admitted, state.used))

    def _charge(self, payload: bytes) -> bytes:
        charge = _decode_charge(payload)
        self._memory.charge(charge.keys, charge.tokens)
        return b""


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

    async def _take(self, keys: ShareKeys) -> QuotaState:
        taken = _decode_taken(await self._channel.call(TAKE, _encode(keys), timeout_s=NO_LIMIT_S))
        return QuotaState(charged_quotas(self.quotas, keys), taken.used, is_admitted=taken.is_admitted)

    async def _charge(self, keys: ShareKeys, tokens: int) -> None:
        if not self._channel.notify(CHARGE, _encode(_Charge(keys, tokens))):
            raise ChannelClosedError

    async def _check(self) -> None:
        await self._channel.call(CHECK, timeout_s=NO_LIMIT_S)

    async def _close(self) -> None:
        """Leave the channel open: it is not this object's."""

    def _is_expected(self, error: Exception) -> bool:
        return isinstance(error, ChannelClosedError | RemoteCallError) or super()._is_expected(error)
