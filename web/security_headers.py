"""Headers that every answer carries, so that no browser makes more of it than data."""

Header = tuple[bytes, bytes]

SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""After OWASP's REST security cheat sheet. Strict-Transport-Security is for who ends TLS, see docs/PRODUCTION.md."""
DATA_POLICY: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
PAGE_POLICY: Header = (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
"""The pages at /schema load scripts of their own; everything else loads nothing."""


def guarding(headers: list[Header]) -> tuple[Header, ...]:
    """What an answer with these *headers* gets in addition."""
    is_page = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
    return (*SECURITY_HEADERS, PAGE_POLICY if is_page else DATA_POLICY)
