"""What a failed test leaves behind: no process, and nothing that fails another test."""

import signal
import socket
import subprocess
import sys

import pytest

from tests.support.garbage import collect_garbage
from tests.support.processes import killed_at_the_end


def test_process_is_killed_and_its_pipes_are_closed_if_the_block_fails() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], stdin=subprocess.PIPE)
    with pytest.raises(KeyError), killed_at_the_end(process):
        raise KeyError
    assert process.returncode == -signal.SIGKILL
    assert process.stdin
    assert process.stdin.closed


def test_socket_that_another_test_has_left_open_fails_no_test_that_collects_garbage() -> None:
    left: list[object] = [socket.socket()]
    left.append(left)  # only the garbage collector frees it
    del left
    collect_garbage()
