"""What tracing costs: CPU time per request of the middleware and the span, with the stages of an embedding.

    python benchmarks/tracing.py [--requests 5000]

Nothing receives the spans: OTEL_TRACES_EXPORTER is `none`, or with --send the batch processor encodes them and finds
no receiver. The first line is the request without tracing: an app that does nothing.
"""

import argparse
import asyncio
import os
import time
from typing import Any

from telemetry.request_work import Stage
from web.request_context import context_of
from web.request_traces import RequestTraces

STAGES = ("cache", "tokenize", "queue", "run")
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


async def app(scope: Any, _receive: Any, send: Any) -> None:
    context, now_s = context_of(scope), time.monotonic()
    context.work.model, context.work.texts, context.work.tokens = "a model", 1, 9
    context.work.stages += [Stage(name, now_s, now_s) for name in STAGES]  # type: ignore[arg-type]
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def send(_message: Any) -> None:
    """Send nothing."""


def scope_of(flag: bytes | None) -> Any:
    headers = [(b"user-agent", b"benchmark")] + ([] if flag is None else [(b"traceparent", TRACEPARENT + flag)])
    plain = {"type": "http", "method": "POST", "path": "/embed", "scheme": "http", "http_version": "1.1"}
    return {**plain, "server": ("127.0.0.1", 8000), "headers": headers, "state": {}}


async def cpu_us(called: Any, requests: int, flag: bytes | None) -> float:
    scopes = [scope_of(flag) for _ in range(requests)]
    started_s = time.thread_time()
    for scope in scopes:
        await called(scope, None, send)
    return (time.thread_time() - started_s) / requests * 1e6


async def measure(requests: int) -> None:
    traces = RequestTraces(version="0", protocol="grpc")
    traced = traces.around(app, embedding=frozenset({"/embed"}), tokenizing=frozenset())
    async with traces.lifespan(None):
        for name, called, flag in (
            ("without tracing", app, None),
            ("recorded", traced, None),
            ("recorded, with traceparent", traced, b"1"),
            ("not recorded by the caller", traced, b"0"),
        ):
            await cpu_us(called, requests // 10, flag)
            found = sorted([await cpu_us(called, requests, flag) for _ in range(5)])
            print(f"{name:<28} {found[2]:7.1f} us of CPU per request on the main thread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--send", action="store_true", help="encode the spans in the background, too")
    arguments = parser.parse_args()
    if not arguments.send:
        os.environ["OTEL_TRACES_EXPORTER"] = "none"
    asyncio.run(measure(arguments.requests))


if __name__ == "__main__":
    main()
