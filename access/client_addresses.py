"""Whose request it is by its network address, behind trusted proxies too."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_PROXIES = 16
"""Hops of `X-Forwarded-For` that are followed: what lies further left was written by nobody that is worth following."""
MAX_HOP_CHARACTERS = 64
"""Characters of a hop at most; the longest address, with its zone and port, has fewer."""
HOME_BITS = 64
"""Leading bits of an IPv6 address that stand for one caller: whoever has one such address has the other 2^64, too."""
NOBODY = "unknown"
"""The caller of a connection without an address."""


class ClientAddresses:
    """Tells callers apart by their addresses."""

    def __init__(self, *, trusted: Sequence[Network] = ()) -> None:
        """Remember the proxies whose `X-Forwarded-For` is believed."""
        self._trusted = tuple(trusted)

    def network_of(self, client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Who asks: an IPv4 address, or the first 64 bits of an IPv6 address.

        It is the peer, unless the peer is a trusted proxy: then the hops of `X-Forwarded-For` are followed from the
        right, where the nearest proxy has written, and the first that is not a trusted proxy is the caller. A hop that
        is no address ends the walk at the proxy that passed it on.
        """
        peer = address_in(client[0]) if client else None
        if peer is None:
            return NOBODY
        if self._trusts(peer):
            peer = self._forwarded_for(peer, headers)
        return _home(peer)

    def _forwarded_for(self, proxy: Address, headers: Iterable[tuple[bytes, bytes]]) -> Address:
        # Several headers of the same name are one list, RFC 9110 section 5.3.
        hops = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        for hop in reversed(hops.rsplit(b",", MAX_PROXIES)[-MAX_PROXIES:]):
            if (address := address_in(hop.decode("latin-1"))) is None:
                return proxy
            if not self._trusts(address):
                return address
            proxy = address
        return proxy

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


@lru_cache(maxsize=4096)
def address_in(hop: str) -> Address | None:
    """The address in a hop such as `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:443`; None: none is.

    An IPv4 address that is mapped into IPv6 is told as what it is, and a zone (`%eth0`) is left out.
    """
    hop = hop.strip()
    if len(hop) > MAX_HOP_CHARACTERS:
        return None
    if hop.startswith("["):
        hop, bracket, port = hop[1:].partition("]")
        is_sound = bool(bracket) and ":" in hop and (not port or _is_port(port))
    elif hop.count(":") == 1:
        hop, _, port = hop.partition(":")
        is_sound = _is_port(f":{port}")
    else:
        is_sound = True
    try:
        address = ip_address(hop) if is_sound else None
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def _home(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    network = int(address) >> HOME_BITS << HOME_BITS
    return f"{IPv6Address(network)}/{HOME_BITS}"
