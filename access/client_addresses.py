"""Network addresses of callers, also of those behind trusted proxies."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from access.principals import Principal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_PROXIES = 16
"""Hops of `X-Forwarded-For` that are read, from the right. Real chains of proxies are shorter."""
MAX_HOP_CHARACTERS = 64
"""Maximum length of a hop. The longest address, with zone and port, is shorter."""
MAX_PRINCIPALS = 4096
"""Number of recent callers whose principals are kept, about 2 MB: making one takes 10 times as long as finding it."""
FORWARDING_HEADERS = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-original-forwarded-for",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"fastly-client-ip",
    }
)
"""Headers, besides all that begin with `x-forwarded-`, by which proxies state whose request they pass on."""
UNKNOWN = Principal("address", network="unknown")
"""The callers whose connections have no address, such as those of a Unix socket. They count as one caller."""


class ClientAddresses:
    """Identifies callers by their network addresses."""

    def __init__(
        self,
        *,
        trusted: Sequence[Network] = (),
        ipv4_prefix_bits: int = 32,
        ipv6_prefix_bits: int = 64,
        ipv6_wide_prefix_bits: int = 48,
    ) -> None:
        """Choose which addresses count as one caller.

        Args:
            trusted: networks of proxies: the `X-Forwarded-For` header of their requests is used.
            ipv4_prefix_bits: leading bits of an IPv4 address that identify a caller.
            ipv6_prefix_bits: the same for IPv6, where a subscriber gets a whole network, usually a /64.
            ipv6_wide_prefix_bits: leading bits of the wide network around a caller, because a site gets up to a /48,
                and so many of these networks; if it is not less than *ipv6_prefix_bits*, there is none.
        """
        self._trusted = tuple(trusted)
        self._trusts = lru_cache(MAX_PRINCIPALS)(self._is_trusted)
        self._principal_of_peer = lru_cache(MAX_PRINCIPALS)(lambda host: self._principal_at(address_in(host)))
        self._prefixes = ipv4_prefix_bits, ipv6_prefix_bits, ipv6_wide_prefix_bits

    def principal_of(self, client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Return the principal of a caller without a key: all addresses of the same network prefix are one caller.

        The caller is the peer, unless the peer is a trusted proxy. Then the hops of `X-Forwarded-For` are read from the
        right, where the nearest proxy appends, and the first hop that is not a trusted proxy is the caller. A hop that
        is not an address ends the search: the caller is then the proxy that passed it on.
        """
        if client is None:
            return UNKNOWN
        if not self._trusted:
            return self._principal_of_peer(client[0])
        peer = address_in(client[0])
        if peer is not None and self._trusts(peer):
            peer = self._forwarded_for(peer, headers)
        return self._principal_at(peer)

    def address_of(self, client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the whole address of the caller, found as by `principal_of`; None: the connection has none."""
        peer = address_in(client[0]) if client else None
        if peer is None:
            return None
        return str(self._forwarded_for(peer, headers) if self._trusts(peer) else peer)

    def network_of_peer(self, client: tuple[str, int] | None) -> str | None:
        """Return the network prefix of the peer of a connection. None: it has no address, or is a trusted proxy."""
        peer = address_in(client[0]) if client else None
        return None if peer is None or self._trusts(peer) else _principal_at(peer, *self._prefixes).network

    def is_local(self, client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether a request comes from this machine, and not through a proxy here that serves other machines.

        The peer must have a loopback address: behind a Unix socket is often a proxy. A request with a header of a proxy
        comes through one, and proves nothing. Through a trusted proxy, every hop of `X-Forwarded-For` must be on this
        machine; the whole list, because a client in a trusted network may have written the beginning.
        """
        peer = address_in(client[0]) if client else None
        if peer is None or not peer.is_loopback:
            return False
        headers = list(headers)
        if not self._trusts(peer):
            return not any(name in FORWARDING_HEADERS or name.startswith(b"x-forwarded-") for name, _ in headers)
        hops = [address_in(hop.decode("latin-1")) for hop in _hops(headers)]
        return all(hop is not None and hop.is_loopback for hop in hops)

    def _principal_at(self, address: Address | None) -> Principal:
        return UNKNOWN if address is None else _principal_at(address, *self._prefixes)

    def _forwarded_for(self, proxy: Address, headers: Iterable[tuple[bytes, bytes]]) -> Address:
        for hop in reversed(_hops(headers)[-MAX_PROXIES:]):
            if (address := address_in(hop.decode("latin-1"))) is None:
                return proxy
            if not self._trusts(address):
                return address
            proxy = address
        return proxy

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the hops of `X-Forwarded-For`, the nearest last; an empty one if there are none."""
    # Several headers of the same name are one list, RFC 9110 section 5.3.
    return b",".join(value for name, value in headers if name == b"x-forwarded-for").rsplit(b",", MAX_PROXIES)


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


@lru_cache(maxsize=MAX_PRINCIPALS)
def _principal_at(address: Address, ipv4_bits: int, ipv6_bits: int, ipv6_wide_bits: int) -> Principal:
    if isinstance(address, IPv4Address):
        return Principal("address", network=_prefix_of(address, ipv4_bits))
    wide_network = _prefix_of(address, ipv6_wide_bits) if ipv6_wide_bits < ipv6_bits else ""
    return Principal("address", network=_prefix_of(address, ipv6_bits), wide_network=wide_network)


def _prefix_of(address: Address, bits: int) -> str:
    """Return the network of the leading *bits* of *address*, or the address itself if these are all of its bits."""
    if bits == address.max_prefixlen:
        return str(address)
    return str(ip_network((address, bits), strict=False))
