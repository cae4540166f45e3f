"""What a process takes, as its own kernel reports it."""

import os
import sys
import time
from pathlib import Path

import pytest

from host.process_usage import process_usage


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports all of it")
def test_process_knows_what_it_takes() -> None:
    before = time.time()
    usage = process_usage()
    assert usage.pid == os.getpid()
    assert usage.cpu_seconds > 0
    assert usage.resident_bytes is not None
    assert usage.proportional_bytes is not None
    assert usage.virtual_bytes is not None
    assert 1e6 < usage.proportional_bytes < 1.1 * usage.resident_bytes < usage.virtual_bytes
    assert usage.started_s is not None
    assert before - 86_400 < usage.started_s < before + 1
    with Path(os.devnull).open() as one, Path(os.devnull).open() as other:
        more = process_usage()
        assert usage.open_files is not None
        assert more.open_files == usage.open_files + 2, (one, other)
    assert usage.max_files is not None
    assert usage.max_files >= usage.open_files


def test_what_the_system_does_not_report_is_unknown(tmp_path: Path) -> None:
    usage = process_usage(proc=tmp_path)
    assert usage.cpu_seconds > 0
    unknown = (usage.resident_bytes, usage.proportional_bytes, usage.virtual_bytes, usage.open_files, usage.started_s)
    assert unknown == (None, None, None, None, None)
