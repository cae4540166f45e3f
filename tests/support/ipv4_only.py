"""A machine without IPv6: set `socket.socket` to this class."""

import errno
import os
import socket
from typing import Any


class Ipv4Only(socket.socket):
    """A socket of a kernel without IPv6."""

    def __init__(self, family: int = socket.AF_INET, *arguments: Any, **options: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *arguments, **options)
