"""Static files: a fixed set below one folder, found when the app is built. Other names do not exist."""

from pathlib import Path, PurePosixPath

from litestar.exceptions import NotFoundException
from litestar.response.base import ASGIResponse
from litestar.types import HTTPScope

from web.kept_bodies import KeptBody
from web.security_headers import Header

STATIC_DIR = Path(__file__).resolve().parents[1] / "static"
TEXT = "; charset=utf-8"
MEDIA_TYPES = {
    ".css": f"text/css{TEXT}",
    ".html": f"text/html{TEXT}",
    ".ico": "image/x-icon",
    ".js": f"text/javascript{TEXT}",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Media types by suffix. Files with another suffix, such as licences, are not served."""
FILE_POLICY: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""For files that are not documents: a browser that opens one by itself lets it load nothing."""


class StaticFiles:
    """The files below one folder, by their paths in it. The folder is not searched again."""

    def __init__(self, folder: Path, *, policy: str) -> None:
        """Find the files of *folder*; none if it does not exist.

        Args:
            folder: read when a file is first asked for; its files must not change while the process runs.
            policy: the Content-Security-Policy of HTML documents.
        """
        documents: Header = (b"content-security-policy", policy.encode())
        self._files = {
            path.relative_to(folder).as_posix(): KeptBody(
                path.read_bytes,
                media_type=MEDIA_TYPES[path.suffix],
                headers=[documents if path.suffix == ".html" else FILE_POLICY],
            )
            for path in sorted(folder.rglob("*"))
            if path.suffix in MEDIA_TYPES
        }

    @property
    def names(self) -> list[PurePosixPath]:
        """The paths of all files, relative to the folder."""
        return [PurePosixPath(name) for name in self._files]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    async def answer(self, name: str, scope: HTTPScope, *, vary: bytes = b"") -> ASGIResponse:
        """Return the answer to a request for the file *name*; *vary* as in `KeptBody.answer`.

        Raises:
            NotFoundException: there is no such file.
        """
        if (file := self._files.get(name)) is None:
            raise NotFoundException
        return await file.answer(scope, vary=vary)


class NoFiles(StaticFiles):
    """No file at all: for a part of the service that is turned off."""

    def __init__(self) -> None:
        self._files = {}
