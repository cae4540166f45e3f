"""Finds environment variables of libraries that cannot be used, such as a malformed proxy. Values are not shown."""

import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from env_file import drop_library_variables
from host.folder_permissions import why_not_writable

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Read by httpx, for the model hub and for JWT_JWKS_URL; in small letters, too."""
PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "WEB_CONCURRENCY")
SWITCHES = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
TRUE_OR_FALSE = frozenset({"1", "ON", "YES", "TRUE", "0", "OFF", "NO", "FALSE"})
UNREAD_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Certificates for another HTTP client than the one that the service uses."""


def unusable_variables(*, resolve: bool = False) -> list[tuple[str, str]]:
    """Return the names of variables that cannot be used, each with the reason, in the order of the names.

    Args:
        resolve: look up the names of proxies, too. This may take seconds.
    """
    found = drop_library_variables(os.environ)
    environment = {name: value for name, value in os.environ.items() if value.strip()}
    for name, value in environment.items():
        check = CHECKS.get(name.upper() if name.lower().endswith("_proxy") else name)
        if check is not None and (reason := check(value)):
            found[name] = reason
        elif resolve and check is _proxy and not _is_resolvable(value):
            found[name] = "the name of its host cannot be resolved"
    found |= _unread_bundles(environment)
    exceptions = [name for name in environment if name.upper() == "NO_PROXY"]
    if exceptions and not any(name.upper() in PROXIES for name in found) and not _has_valid_exceptions():
        found |= dict.fromkeys(exceptions, "it has a malformed entry")
    return sorted(found.items())


def describe(name: str, reason: str) -> str:
    """Return one line about a variable."""
    return f"{name} in the environment cannot be used: {reason}"


def _endpoint(value: str) -> str | None:
    parts = _split(value)
    is_valid = parts is not None and parts.scheme in {"http", "https"} and parts.hostname
    return None if is_valid else "use an address like https://huggingface.co"


def _proxy(value: str) -> str | None:
    parts = _split(value if "://" in value else f"http://{value}")
    if parts is None or not parts.hostname or parts.scheme not in PROXY_SCHEMES:
        return "use an address like http://proxy.example:3128"
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        return "proxies of SOCKS need the package socksio; use one of HTTP"
    import httpx  # noqa: PLC0415 - 0.1 s of import, needed with a proxy only

    try:
        httpx.URL(value if "://" in value else f"http://{value}")
    except httpx.InvalidURL:
        return "use an address like http://proxy.example:3128"
    return None if parts.port else "it has no port; use an address like http://proxy.example:3128"


def _is_resolvable(proxy: str) -> bool:
    parts = _split(proxy if "://" in proxy else f"http://{proxy}")
    try:
        socket.getaddrinfo(parts.hostname if parts else None, None)
    except (OSError, ValueError):
        return False
    return True


def _has_valid_exceptions() -> bool:
    """Whether httpx can read NO_PROXY; the proxies are valid."""
    import httpx  # noqa: PLC0415 - 0.1 s of import, needed with NO_PROXY only

    try:
        httpx.Client(verify=False).close()  # noqa: S501 - it sends nothing
    except (httpx.InvalidURL, ValueError):
        return False
    return True


def _certificate_file(value: str) -> str | None:
    try:
        ssl.create_default_context(cafile=value)
    except ssl.SSLError:
        return "the file contains no certificate in PEM form"
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    return None


def _certificate_folder(value: str) -> str | None:
    return None if any(Path(folder).is_dir() for folder in value.split(os.pathsep)) else "there is no such folder"


def _unread_bundles(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield variables that operators set for certificates of their own, if nothing else names those."""
    if "SSL_CERT_FILE" in environment or "SSL_CERT_DIR" in environment:
        return
    for name in UNREAD_BUNDLES:
        if name in environment:
            yield name, "the service does not read it; set SSL_CERT_FILE"


def _number(value: str) -> str | None:
    return None if re.fullmatch(r"\s*[0-9]+(,[0-9]+)*\s*", value) else "it is not a whole number, so it has no effect"


def _switch(value: str) -> str | None:
    return None if value.strip().upper() in TRUE_OR_FALSE else "use 1 or 0; it counts as 0"


def _token(value: str) -> str | None:
    return None if value.isascii() and value.strip().isprintable() else "it has characters that no token has"


def _folder(value: str) -> str | None:
    trouble = why_not_writable(Path(value).expanduser())
    return None if trouble is None else f"downloads need it, but {trouble}"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it may raise, too
    except ValueError:
        return None
    return parts


CHECKS: Mapping[str, Callable[[str], str | None]] = {
    "HF_ENDPOINT": _endpoint,
    "HF_TOKEN": _token,
    "HF_HOME": _folder,
    "SSL_CERT_FILE": _certificate_file,
    "SSL_CERT_DIR": _certificate_folder,
    **dict.fromkeys(PROXIES, _proxy),
    **dict.fromkeys(THREADS, _number),
    **dict.fromkeys(SWITCHES, _switch),
}
"""How each variable is checked: returns why its value cannot be used, or None."""
