"""Security headers of every answer, which make a browser treat it as data only."""

Header = tuple[bytes, bytes]

BASIC_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
"""From OWASP's REST security cheat sheet. Strict-Transport-Security belongs to the proxy that terminates TLS."""
DATA_HEADERS: tuple[Header, ...] = (
    *BASIC_HEADERS,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""For data: nobody keeps it, and a browser that shows it lets it load nothing."""


def security_headers_for(headers: list[Header]) -> tuple[Header, ...]:
    """Return the headers to add to an answer with these *headers*.

    Static files and redirects have a Content-Security-Policy and a Cache-Control of their own.
    """
    for name, _ in headers:
        if name == b"content-security-policy":
            return BASIC_HEADERS
    return DATA_HEADERS
