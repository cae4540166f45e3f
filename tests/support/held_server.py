"""The service, run as `python -m tests.support.held_server`: its model runs wait after the input line `hold`."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import structlog

import main
from engine.encoder import Encoder
from engine.jobs import Matrix

log = structlog.get_logger()
gate = threading.Event()
encode = Encoder.encode


def encode_when_open(self: Encoder, items: Sequence[Any], *, is_lone: bool = False, **more: Any) -> Matrix:
    if not gate.is_set():
        log.info("run_held", texts=len(items))
        gate.wait()
    return encode(self, items, is_lone=is_lone, **more)


def obey() -> None:
    for line in sys.stdin:
        match line.strip():
            case "hold":
                gate.clear()
            case "release":
                gate.set()
        log.info("told", line=line.strip())


if __name__ == "__main__":
    gate.set()
    Encoder.encode = encode_when_open  # type: ignore[method-assign]  # all else is the service as it is
    threading.Thread(target=obey, daemon=True).start()
    sys.exit(main.serve_forever())
