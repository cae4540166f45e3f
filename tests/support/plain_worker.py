"""A worker without a service, for tests of the supervisor: `python -m tests.support.plain_worker`.

The environment variable PLAIN_WORKER says what it does: `serve` (the default), `be stuck`, `exit CODE`, `fail REASON`,
`die` (of SIGKILL) or `wait` (never be ready).
"""

import asyncio
import os
import signal
import sys

import msgspec

from host.message_channel import MessageChannel
from serving.connection_receiver import ConnectionReceiver
from serving.process_start import prepare_process
from serving.worker_process import WorkerLink
from serving.worker_watch import Pulse


async def work(link: WorkerLink, behaviour: str) -> None:
    """Answer the supervisor until it asks to end, or closes the channel."""
    ended = asyncio.Event()

    def ping(_: bytes) -> bytes:
        return msgspec.msgpack.encode(Pulse(is_stuck=behaviour == "be stuck"))

    def say_draining(_: bytes) -> bytes:
        channel.notify("worker.draining")
        return b""

    channel = MessageChannel(link.channel_socket, {"worker.ping": ping, "test.drain": say_draining})
    ConnectionReceiver(link.connections_socket, make_protocol=lambda _: asyncio.Protocol(), on_retire=ended.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await channel.open()
    if behaviour != "wait":
        channel.notify("worker.ready")
    closed = asyncio.create_task(channel.run())
    await asyncio.wait([closed, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)


def main() -> None:
    """Do what the environment says."""
    prepare_process()
    link = WorkerLink.from_environment()
    assert link is not None
    behaviour, _, argument = os.environ.get("PLAIN_WORKER", "serve").partition(" ")
    match behaviour:
        case "exit":
            sys.exit(int(argument))
        case "fail":
            link.report_failure(argument)
            sys.exit(1)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            asyncio.run(work(link, os.environ.get("PLAIN_WORKER", "serve")))


if __name__ == "__main__":
    main()
