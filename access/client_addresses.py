"""Network addresses of callers, also of those behind trusted proxies."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_PROXIES = 16
"""Hops of `X-Forwarded-For` that are read, from the right. Real chains of proxies are shorter."""
MAX_HOP_CHARACTERS = 64
"""Maximum length of a hop. The longest address, with zone and port, is shorter."""
IPV6_PREFIX_BITS = 64
"""Leading bits of an IPv6 address that identify a caller: a subscriber usually gets a whole /64."""
UNKNOWN = "unknown"
"""The network of a connection without an address, such as a Unix socket."""


class ClientAddresses:
    """Identifies callers by their network addresses."""

    def __init__(self, *, trusted: Sequence[Network] = ()) -> None:
        """Use the `X-Forwarded-For` header of requests that come from the networks *trusted*."""
        self._trusted = tuple(trusted)

    def network_of(self, client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the caller's network: an IPv4 address, or the /64 prefix of an IPv6 address.

        The caller is the peer, unless the peer is a trusted proxy. Then the hops of `X-Forwarded-For` are read from the
        right, where the nearest proxy appends, and the first hop that is not a trusted proxy is the caller. A hop that
        is not an address ends the search: the caller is then the proxy that passed it on.
        """
        peer = address_in(client[0]) if client else None
        if peer is None:
            return UNKNOWN
        if self._trusts(peer):
            peer = self._forwarded_for(peer, headers)
        return _network_prefix(peer)

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
    """Return the address in a hop such as `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:443`.

    None: there is none. An IPv4 address mapped into IPv6 is returned as IPv4; a zone (`%eth0`) is dropped.
    """
    hop = hop.strip()
    if len(hop) > MAX_HOP_CHARACTERS:
        return None
    if hop.startswith("["):
        hop, bracket, port = hop[1:].partition("]")
        is_valid = bool(bracket) and ":" in hop and (not port or _is_port(port))
    elif hop.count(":") == 1:
        hop, _, port = hop.partition(":")
        is_valid = _is_port(f":{port}")
    else:
        is_valid = True
    try:
        address = ip_address(hop) if is_valid else None
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def _network_prefix(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    network = int(address) >> IPV6_PREFIX_BITS << IPV6_PREFIX_BITS
    return f"{IPv6Address(network)}/{IPV6_PREFIX_BITS}"
