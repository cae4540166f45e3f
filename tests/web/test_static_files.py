"""Static files: which exist, and with what headers each is sent."""

from pathlib import Path
from typing import cast

import pytest
from litestar.exceptions import NotFoundException
from litestar.types import HTTPScope

from web.kept_bodies import KeptAnswer
from web.static_files import NoFiles, StaticFiles

SCOPE = cast("HTTPScope", {"type": "http", "headers": []})


@pytest.fixture
def files(tmp_path: Path) -> StaticFiles:
    folder = tmp_path / "static"
    (folder / "vendor").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "vendor" / "chart.js").write_text("export {};")
    (folder / "vendor" / "LICENSE").write_text("MIT")
    (tmp_path / "secret.html").write_text("secret")
    return StaticFiles(folder, policy="script-src 'self'")


async def headers_of(files: StaticFiles, name: str) -> dict[bytes, bytes]:
    answer = await files.answer(name, SCOPE)
    assert isinstance(answer, KeptAnswer)
    return dict(answer.kept_headers)


async def test_files_are_sent_with_their_media_type_and_documents_with_the_policy(files: StaticFiles) -> None:
    document, script = await headers_of(files, "index.html"), await headers_of(files, "vendor/chart.js")
    assert document[b"content-type"] == b"text/html; charset=utf-8"
    assert document[b"content-security-policy"] == b"script-src 'self'"
    assert script[b"content-type"] == b"text/javascript; charset=utf-8"
    assert script[b"content-security-policy"] == b"default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    "name",
    ["", "vendor", "vendor/LICENSE", "../secret.html", "vendor/../index.html", "/index.html", "index.html/", "x.js"],
)
async def test_other_names_do_not_exist(files: StaticFiles, name: str) -> None:
    assert name not in files
    with pytest.raises(NotFoundException):
        await files.answer(name, SCOPE)


def test_file_that_is_added_later_does_not_exist(files: StaticFiles, tmp_path: Path) -> None:
    (tmp_path / "static" / "later.js").write_text("")
    assert "later.js" not in files


def test_without_a_folder_there_are_no_files(tmp_path: Path) -> None:
    assert StaticFiles(tmp_path / "nowhere", policy="").names == NoFiles().names == []
