"""Builds what identifies callers by their network addresses, for the app, the server and the supervisor."""

from access.client_addresses import ClientAddresses
from config import Settings


def client_addresses(settings: Settings) -> ClientAddresses:
    """Return what identifies callers by their network addresses."""
    return ClientAddresses(
        trusted=settings.trusted_proxies,
        ipv4_prefix_bits=settings.ipv4_caller_prefix,
        ipv6_prefix_bits=settings.ipv6_caller_prefix,
        ipv6_wide_prefix_bits=settings.ipv6_wide_caller_prefix,
    )
