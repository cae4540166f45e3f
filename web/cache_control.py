"""The request header `Cache-Control`: what a request allows of the result cache (RFC 9111, section 5.2.1)."""

import re
from collections.abc import Iterator, Sequence

from engine.result_store import CACHE_USE, CacheUse

DIRECTIVE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
"""A directive up to the next comma that is not quoted. A quote that is never closed reaches to the end."""
BLANKS = " \t"


def cache_use(values: Sequence[str]) -> CacheUse:
    """Return what a request allows, given the values of all its headers `Cache-Control`.

    `no-store`: results of the request are not kept. `no-cache` and `max-age=0`: nothing that was kept is used. Others
    are ignored, as the RFC allows: a result never goes stale, because it depends on the text and the model only.
    `Pragma` is not read: the RFC deprecates it, and clients that send it send `Cache-Control`, too.
    """
    if not values:
        return CACHE_USE
    may_read = may_keep = True
    for name, argument in _directives(values):
        if name == "no-store":
            may_keep = False
        elif name == "no-cache" or (name == "max-age" and argument and not argument.strip("0")):
            may_read = False
    return CacheUse(may_read=may_read, may_keep=may_keep)


def _directives(values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each directive, in lower case, and its argument, without quotes."""
    for value in values:
        for directive in DIRECTIVE.findall(value):
            name, _, argument = directive.partition("=")
            yield name.strip(BLANKS).lower(), argument.strip(BLANKS).strip('"')
