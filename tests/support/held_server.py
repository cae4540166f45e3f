"""The service with model runs that a test can hold; run it as `python -m tests.support.held_server`.

After the input line `hold`, model runs wait for the input line `release`. Each line is confirmed in the log.
"""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import structlog

import main
from engine.encoder import Encoder
from engine.vectors import Matrix

log = structlog.get_logger()
gate = threading.Event()
encode = Encoder.encode


def encode_when_released(self: Encoder, items: Sequence[Any], *, is_lone: bool = False, **more: Any) -> Matrix:
    if not gate.is_set():
        log.info("run_held", texts=len(items))
        gate.wait()
    return encode(self, items, is_lone=is_lone, **more)


def read_commands() -> None:
    for line in sys.stdin:
        match line.strip():
            case "hold":
                gate.clear()
            case "release":
                gate.set()
        log.info("command_done", command=line.strip())


if __name__ == "__main__":
    gate.set()
    Encoder.encode = encode_when_released  # type: ignore[method-assign]  # everything else is the real service
    threading.Thread(target=read_commands, daemon=True).start()
    sys.exit(main.serve_forever())
