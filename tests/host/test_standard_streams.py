"""Standard streams that are closed, full or shared."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from host.standard_streams import is_writable, make_nonblocking
from tests.support.servers import ROOT

CLOSED = """
import os
from host.standard_streams import open_closed_streams
open_closed_streams()
first_file = os.open("/dev/null", os.O_RDONLY)
os.write(1, b"")
os._exit(first_file)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell that closes descriptors")
def test_no_file_gets_the_descriptor_of_a_closed_stream() -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", f"exec 0<&- 1>&- 2>&-; exec \"{sys.executable}\" -c '{CLOSED}'"], cwd=ROOT, check=False
    )
    assert ended.returncode >= 3


def test_pipe_is_writable_until_it_is_full() -> None:
    reading, writing = os.pipe()
    assert is_writable(writing)
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"-" * 1000)
    assert not is_writable(writing)
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(sys.platform != "linux", reason="opens the pipe a second time")
def test_pipe_becomes_nonblocking_for_this_process_only() -> None:
    reading, writing = os.pipe()
    shared = os.dup(writing)  # as in another process
    make_nonblocking(writing)
    assert not os.get_blocking(writing)
    assert os.get_blocking(shared)
    os.write(writing, b"a")
    assert os.read(reading, 1) == b"a"
    for descriptor in (reading, writing, shared):
        os.close(descriptor)
