"""What the service finds around it: its address, memory, disk, and the hub."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from engine.hub import HUB_TIMEOUT_S
from host.folder_permissions import nearest_existing

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
        answer = get_session().get(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except OfflineModeIsEnabled:
        return HubAnswer(endpoint, "switched off by HF_HUB_OFFLINE", is_off=True)
    except Exception as error:  # noqa: BLE001 - of whatever library: the hub does not answer
        return HubAnswer(endpoint, f"cannot be reached ({type(error).__name__})")
    if answer.status_code >= SERVER_ERROR:
        return HubAnswer(endpoint, f"answers with status {answer.status_code}")
    return HubAnswer(endpoint)


def free_disk_bytes(folder: Path) -> int | None:
    """Free space where *folder* is or would be made; None: not told."""
    with suppress(OSError):
        return shutil.disk_usage(nearest_existing(folder)).free
    return None


def _public(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
