"""What the service finds around it: its address, memory, disk, and the hub."""

import errno
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from host.folder_permissions import existing
from engine.hub import HUB_ANSWER_S
from host.cores import CGROUP

MEMINFO = Path("/proc/meminfo")
SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """What came of asking the hub.

    Attributes:
        endpoint: its address, without a name or password in it.
        problem: why it cannot be used; None: it answers.
        is_off: it is not asked, because HF_HUB_OFFLINE says so.
    """

    endpoint: str
    problem: str | None = None
    is_off: bool = False


def ask_hub() -> HubAnswer:
    """Ask the hub for anything: whatever it answers, it is there. Blocks for some seconds at most."""
    endpoint = _public(constants.ENDPOINT)
    try:
        answer = get_session().get(constants.ENDPOINT, timeout=HUB_ANSWER_S)
    except OfflineModeIsEnabled:
        return HubAnswer(endpoint, "switched off by HF_HUB_OFFLINE", is_off=True)
    except Exception as error:  # noqa: BLE001 - of whatever library: the hub does not answer
        return HubAnswer(endpoint, f"cannot be reached ({type(error).__name__})")
    if answer.status_code >= SERVER_ERROR:
        return HubAnswer(endpoint, f"answers with status {answer.status_code}")
    return HubAnswer(endpoint)


@dataclass(frozen=True, slots=True)
class AddressProblem:
    """Why nothing can be listened on at an address."""

    reason: str
    is_in_use: bool


def why_not_listening(host: str, port: int) -> AddressProblem | None:
    """Take the address as the service would, and let go of it at once; None: that works."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen()
    except (OSError, TypeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no address"
        return AddressProblem(reason, is_in_use=isinstance(error, OSError) and error.errno == errno.EADDRINUSE)
    return None


def available_bytes(*, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Memory that may still be taken, of the machine's or of the container's, whichever is less; None: not told."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        [line] = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
        found.append(1024 * int(line.split()[1]))
    with suppress(OSError, ValueError):  # "max" is no number: no limit is set
        limit = int((cgroup / "memory.max").read_text())
        found.append(max(0, limit - int((cgroup / "memory.current").read_text())))
    return min(found, default=None)


def free_disk_bytes(folder: Path) -> int | None:
    """Free space where *folder* is or would be made; None: not told."""
    with suppress(OSError):
        return shutil.disk_usage(existing(folder)).free
    return None


def _public(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
