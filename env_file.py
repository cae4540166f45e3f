"""Names in `.env` that are no setting but look like one: they do nothing, and nobody else would say so."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

LIKE_A_SETTING = 0.75
"""Names that are so much like a setting's are taken for mistyped; those that Compose reads are less like any."""


def mistyped(env_file: Path, settings: Collection[str]) -> dict[str, str]:
    """Names in *env_file* that look like a mistyped one of *settings*, with that one; other programs' do not count."""
    if not env_file.is_file():
        return {}
    names = re.findall(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=", env_file.read_text("utf-8"), re.MULTILINE)
    return {
        name: meant[0]
        for name in names
        if name.upper() not in settings and (meant := get_close_matches(name.upper(), settings, 1, LIKE_A_SETTING))
    }
