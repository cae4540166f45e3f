"""The address that identifies a caller: which part of X-Forwarded-For is trusted, and which is not."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from access.client_addresses import MAX_HOP_CHARACTERS, MAX_PROXIES, UNKNOWN, ClientAddresses, address_in

PROXY, OTHER_PROXY = "10.0.0.1", "10.0.0.2"
CALLER, VICTIM = "203.0.113.7", "198.51.100.9"
addresses = ClientAddresses(trusted=[ip_network("10.0.0.0/29"), ip_network("fd00::/8")])


def network_of(peer: str | None, *forwarded: str | bytes, among: ClientAddresses = addresses) -> str:
    """Return the caller's network for a request from *peer* with these X-Forwarded-For headers."""
    values = [value if isinstance(value, bytes) else value.encode() for value in forwarded]
    headers = [(b"accept", b"*/*"), *((b"x-forwarded-for", value) for value in values)]
    return among.principal_of((peer, 1234) if peer is not None else None, headers).network


def test_caller_is_the_peer() -> None:
    assert network_of(CALLER) == CALLER


@pytest.mark.parametrize("header", [VICTIM, f"{VICTIM}, {PROXY}", "", "x"])
def test_header_of_a_peer_that_is_not_a_trusted_proxy_is_ignored(header: str) -> None:
    assert network_of(CALLER, header) == CALLER
    assert network_of(PROXY, header, among=ClientAddresses()) == PROXY


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([CALLER], id="one proxy"),
        pytest.param([f"{CALLER}, {OTHER_PROXY}"], id="two proxies"),
        pytest.param([CALLER, OTHER_PROXY], id="two proxies, a header each"),
        pytest.param([f"{VICTIM}, {CALLER}"], id="caller sends a header"),
        pytest.param([VICTIM, f"{CALLER},{OTHER_PROXY}"], id="caller sends a header of its own"),
        pytest.param([f"{PROXY}, {CALLER}"], id="caller names a proxy"),
        pytest.param([f"\t {CALLER} "], id="spaces"),
        pytest.param([f"{CALLER}:51234"], id="port"),
        pytest.param([f"::ffff:{CALLER}"], id="mapped into IPv6"),
        pytest.param([f"[::ffff:{CALLER}]:51234"], id="mapped into IPv6, with port"),
        pytest.param([f"{CALLER}, fd00::7"], id="proxy with an IPv6 address"),
        pytest.param([f"{CALLER}, [fd00::7]:80"], id="proxy with an IPv6 address and port"),
    ],
)
def test_behind_trusted_proxies_the_caller_is_the_first_untrusted_hop_from_the_right(headers: list[str]) -> None:
    assert network_of(PROXY, *headers) == CALLER
    assert network_of(f"::ffff:{PROXY}", *headers) == CALLER


@pytest.mark.parametrize(
    ("header", "caller"),
    [
        pytest.param(f"{CALLER}, unknown", PROXY, id="no address"),
        pytest.param(f"{CALLER}, ", PROXY, id="empty hop"),
        pytest.param(f"{CALLER}, x, {OTHER_PROXY}", OTHER_PROXY, id="no address, from another proxy"),
        pytest.param(f"{CALLER}, 1.2.3", PROXY, id="incomplete address"),
        pytest.param(f"{CALLER}, [::1", PROXY, id="bracket that is not closed"),
        pytest.param(f"{CALLER}, [::1]x", PROXY, id="bracket and a letter"),
        pytest.param(f"{CALLER}, [{CALLER}]", PROXY, id="IPv4 in brackets"),
        pytest.param(f"{CALLER}, {CALLER}:http", PROXY, id="port in letters"),
        pytest.param(f"{CALLER}, {CALLER};{CALLER}", PROXY, id="semicolon"),
        pytest.param("", PROXY, id="empty"),
        pytest.param(OTHER_PROXY, OTHER_PROXY, id="proxies only"),
        pytest.param(f"{VICTIM}, " + f"{PROXY}, " * MAX_PROXIES + OTHER_PROXY, PROXY, id="too many proxies"),
    ],
)
def test_search_ends_at_the_last_trusted_hop(header: str, caller: str) -> None:
    assert network_of(PROXY, header) == caller


def test_trusted_proxy_without_a_header_is_the_caller_itself() -> None:
    assert network_of(PROXY) == PROXY


def test_ipv6_callers_are_identified_by_the_first_64_bits() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::9%eth0") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::9") == "2001:db8:1:3::/64"


@pytest.mark.parametrize(
    ("prefixes", "peer", "share_keys"),
    [
        pytest.param((32, 64, 48), CALLER, [CALLER], id="IPv4"),
        pytest.param((32, 64, 48), f"::ffff:{CALLER}", [CALLER], id="IPv4 mapped into IPv6"),
        pytest.param((24, 64, 48), CALLER, ["203.0.113.0/24"], id="IPv4, wider"),
        pytest.param((8, 64, 48), f"::ffff:{CALLER}", ["203.0.0.0/8"], id="mapped IPv4, wider"),
        pytest.param((32, 64, 48), "2001:db8:1:2::9", ["2001:db8:1:2::/64", "2001:db8:1::/48"], id="IPv6"),
        pytest.param((32, 64, 48), "2001:db8:1:2::9%eth0", ["2001:db8:1:2::/64", "2001:db8:1::/48"], id="zone"),
        pytest.param((32, 64, 48), "2001:db8::", ["2001:db8::/64", "2001:db8::/48"], id="same digits, two keys"),
        pytest.param((32, 56, 40), "2001:db8:1:2ff::9", ["2001:db8:1:200::/56", "2001:db8::/40"], id="IPv6, wider"),
        pytest.param((32, 128, 64), "2001:db8::9", ["2001:db8::9", "2001:db8::/64"], id="each address"),
        pytest.param((32, 48, 48), "2001:db8:1:2::9", ["2001:db8:1::/48"], id="no wide network"),
        pytest.param((32, 32, 48), "2001:db8:1:2::9", ["2001:db8::/32"], id="wide network would be narrower"),
        pytest.param((8, 32, 16), "/run/service.sock", ["unknown"], id="Unix socket"),
    ],
)
def test_prefixes_choose_which_addresses_are_one_caller(
    prefixes: tuple[int, int, int], peer: str, share_keys: list[str]
) -> None:
    ipv4, ipv6, wide = prefixes
    among = ClientAddresses(ipv4_prefix_bits=ipv4, ipv6_prefix_bits=ipv6, ipv6_wide_prefix_bits=wide)
    principal = among.principal_of((peer, 1234), [])
    assert (principal.kind, principal.name, principal.permissions) == ("address", "", frozenset())
    assert principal.share_keys == tuple(f"address {network}" for network in share_keys)


def test_principal_of_an_address_is_made_once() -> None:
    assert addresses.principal_of((CALLER, 1), []) is addresses.principal_of((CALLER, 2), [])


def test_mapped_address_is_the_ipv4_address() -> None:
    assert network_of(f"::ffff:{CALLER}") == CALLER


@pytest.mark.parametrize("peer", [None, "", "testclient", "/run/service.sock"])
def test_peer_without_an_address_is_unknown(peer: str | None) -> None:
    assert network_of(peer, VICTIM) == UNKNOWN.network == "unknown"


@given(header=st.binary(max_size=300), peer=st.sampled_from([PROXY, CALLER, "fd00::1"]))
@settings(deadline=None)
def test_any_header_is_accepted(header: bytes, peer: str) -> None:
    assert network_of(peer, header)


@given(hop=st.text(max_size=MAX_HOP_CHARACTERS + 10))
@settings(deadline=None)
def test_any_hop_is_accepted(hop: str) -> None:
    address_in(hop)


@given(
    sent=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from([VICTIM.encode(), f"{VICTIM}, {PROXY}".encode(), f"{PROXY},".encode(), b",", b'"']),
        ),
        max_size=5,
    ),
    is_list=st.booleans(),
)
@settings(deadline=None)
def test_caller_cannot_get_the_quota_of_another_by_a_header(sent: list[bytes], *, is_list: bool) -> None:
    """A proxy appends the caller's address: to the list that it received, or as a header of its own."""
    forwarded = [*sent, CALLER.encode()]
    assert network_of(PROXY, *([b", ".join(forwarded)] if is_list else forwarded)) == CALLER


@given(address=st.ip_addresses(), port=st.integers(1, 65535))
@settings(deadline=None)
def test_every_address_is_read_with_and_without_a_port(address: IPv4Address | IPv6Address, port: int) -> None:
    with_port = f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"
    expected = (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
    assert address_in(str(address)) == address_in(with_port) == expected
