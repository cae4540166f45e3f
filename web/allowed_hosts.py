"""Allowed hosts: rejects requests that name a host which the operator has not listed (ALLOWED_HOSTS).

This stops DNS rebinding: a page whose name an attacker points at the service's address sends that name as its host.
Litestar's `AllowedHostsMiddleware` compares the header as it is written: its port, letter case, trailing dot and the
brackets of IPv6 addresses make it differ. It also does not see targets in absolute form, and answers in its own format.
"""

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from engine.errors import ServiceError
from web.dialects import Rejection
from web.litestar_adapter import normalize_path
from web.request_context import Client, context_of
from web.security_headers import Header

HOST = re.compile(r"(?:\[([0-9a-f]*:[0-9a-f:.]+)(?:%[^\]\s]*)?\]|([a-z0-9._-]+))(?::[0-9]*)?")
"""An address of IPv6, or a name or an address of IPv4, and a port (RFC 9110, section 4.2.3); letters in lower case."""
EarlyRejection = Callable[[str, Client, Iterable[Header]], Rejection | None]


class MisdirectedRequestError(ServiceError):
    """The request names a host that this service does not serve, or none."""

    status, code, title = 421, "misdirected-request", "This host is not served here"

    def __init__(self) -> None:
        super().__init__("ALLOWED_HOSTS does not include the host that the request names (in Host or in its target).")


class AllowedHosts:
    """The hosts that requests may name."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Allow *entries*: names, `*.` and a name for all names below it, addresses, and networks of addresses."""
        self._networks = []
        names = set()
        for entry in entries:
            try:
                self._networks.append(ip_network(entry))
            except ValueError:
                names.add(entry)
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._names = names - {f"*{suffix}" for suffix in self._suffixes}

    def includes(self, host: bytes) -> bool:
        """Return whether *host*, the value of a header, is allowed; its port and letter case do not matter."""
        if (match := HOST.fullmatch(host.decode("latin-1").strip().lower())) is None:
            return False
        name = match[1] or match[2].removesuffix(".")
        try:
            address: IPv4Address | IPv6Address = ip_address(name)
        except ValueError:
            return match[1] is None and (name in self._names or (name.endswith(self._suffixes) and name[0] != "."))
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def include_all(self, authority: bytes | None, headers: Iterable[Header]) -> bool:
        """Return whether a request names a host, and only allowed ones: in its target (*authority*) and in `Host`."""
        hosts = [value for name, value in headers if name == b"host"]
        if authority is not None:
            hosts.append(authority)
        return bool(hosts) and all(map(self.includes, hosts))

    def reject_early(self, reject: EarlyRejection) -> EarlyRejection:
        """Return *reject* for requests to allowed hosts; the app answers the others, as it always does."""

        def reject_allowed(path: str, client: Client, headers: Iterable[Header]) -> Rejection | None:
            headers = list(headers)
            return reject(path, client, headers) if self.include_all(None, headers) else None

        return reject_allowed


class HostGuard:
    """ASGI middleware inside the `RequestLog`, which answers the errors raised here."""

    def __init__(self, app: ASGIApp, *, allowed: AllowedHosts, exempt: frozenset[str]) -> None:
        """Wrap *app*.

        Args:
            app: receives the requests to allowed hosts.
            allowed: the hosts.
            exempt: routes for any host: probes use addresses, and no host at all.
        """
        self._app = app
        self._allowed = allowed
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app for allowed hosts.

        Raises:
            MisdirectedRequestError: the host is not allowed.
        """
        if scope["type"] == ScopeType.HTTP and normalize_path(scope["path"]) not in self._exempt:
            authority = context_of(scope).authority
            if not self._allowed.include_all(authority, scope["headers"]):
                raise MisdirectedRequestError
        await self._app(scope, receive, send)
