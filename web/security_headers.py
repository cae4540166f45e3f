"""Security headers of every answer, which make a browser treat it as data only."""

Header = tuple[bytes, bytes]

SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""From OWASP's REST security cheat sheet. Strict-Transport-Security belongs to the proxy that terminates TLS."""
DATA_POLICY: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
PAGE_POLICY: Header = (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
"""For the pages at /schema, which load scripts. All other answers are data and may load nothing."""


DATA_HEADERS = (*SECURITY_HEADERS, DATA_POLICY)
PAGE_HEADERS = (*SECURITY_HEADERS, PAGE_POLICY)


def security_headers_for(headers: list[Header]) -> tuple[Header, ...]:
    """Return the headers to add to an answer with these *headers*."""
    for name, value in headers:
        if name == b"content-type" and value.startswith(b"text/html"):
            return PAGE_HEADERS
    return DATA_HEADERS
