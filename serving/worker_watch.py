"""Finds out that a worker no longer works although its process runs."""

import asyncio
from typing import Literal

import msgspec

from host.message_channel import ChannelClosedError, RemoteCallError
from serving.worker_process import WorkerProcess

MAX_HUNG_S = 30.0
"""A worker that answers no question of the supervisor for this long is replaced. Nothing in a worker keeps its event
loop busy for a tenth of this; LANE_STUCK_SECONDS may shorten it."""
MISSES = 3
"""Questions in a row without an answer. One is not enough: after a pause of the machine or the container, the
supervisor may notice the time before the worker has had any."""

Trouble = Literal["hung", "stuck", "draining"]
"""Why a worker is replaced: its event loop does not run, a model run does not end, or it ends by itself."""


class Pulse(msgspec.Struct, array_like=True):
    """A worker's answer to `worker.ping`."""

    is_stuck: bool


async def wait_for_trouble(worker: WorkerProcess, *, hung_s: float) -> Trouble:
    """Return why *worker*, which was ready, has to be replaced, once it has to be."""
    pause_s = hung_s / MISSES
    misses = 0
    while misses < MISSES:
        try:
            answer = await worker.channel.call("worker.ping", timeout_s=pause_s)
        except TimeoutError:
            misses += 1
            continue
        except ChannelClosedError:  # it ends, or reads nothing
            misses += 1
        except RemoteCallError:  # it works, but its log has an error
            misses = 0
        else:
            misses = 0
            if msgspec.msgpack.decode(answer, type=Pulse).is_stuck:
                return "stuck"
        try:
            await asyncio.wait_for(worker.draining.wait(), pause_s)
        except TimeoutError:
            continue
        return "draining"
    return "hung"
