"""Checks whether the model hub can be reached."""

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from engine.hub_client import HUB_TIMEOUT_S

SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class HubStatus:
    """Whether the hub can be reached.

    Attributes:
        endpoint: its URL, without credentials and query.
        problem: why it cannot be used; None: it can.
        is_offline: HF_HUB_OFFLINE disables it, so it was not asked.
    """

    endpoint: str
    problem: str | None = None
    is_offline: bool = False


def check_hub() -> HubStatus:
    """Send one request to the hub. Any answer below status 500 means that it works. Blocks for some seconds at most."""
    endpoint = _without_secrets(constants.ENDPOINT)
    try:
        answer = get_session().get(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except OfflineModeIsEnabled:
        return HubStatus(endpoint, "is disabled by HF_HUB_OFFLINE", is_offline=True)
    except Exception as error:  # noqa: BLE001 - any error, of whatever library, means that the hub does not answer
        return HubStatus(endpoint, f"cannot be reached ({type(error).__name__})")
    if answer.status_code >= SERVER_ERROR:
        return HubStatus(endpoint, f"answers with status {answer.status_code}")
    return HubStatus(endpoint)


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
