"""Model names, headers and request ids that attack: a name is only looked up, and no value makes the service fail."""

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.servers import ServerProcess, running_server
from tests.support.tiny import TinyModel

TEXT = "squeamish-ossifrage"
MODEL = "tiny/one"
repeatable = settings(derandomize=True, deadline=None, max_examples=150)
pytestmark = pytest.mark.timeout(120)

PARTS = (
    *("..", ".", "/", "\\", "//", "%2e%2e", "%252e%252e%252f", "%c0%ae%c0%ae", "%00", "\0", "~", "$HOME", "C:", "*"),
    *("models", "model.json", "etc/passwd", "proc/self/environ", "secret", "tiny", "one", "tiny--one", "models--a--b"),
    *("\uff0e\uff0e", "\u2215", "\uff0f", "e\u0301", "\u0131", "\u212a", "\u202e", "\ufeff", "\r\nX-A: b", "\x1b[31m"),
)
BYTES = (b"..", b"/", b"\\", b"\xc0\xae", b"\xff", b"%", b"\0", b"a")
names = st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=8).map("".join)
raw_names = st.lists(st.sampled_from(BYTES), max_size=9).map(b"".join)
field_bytes = st.binary(max_size=120).map(lambda value: re.sub(rb"[\0-\x08\n-\x1f\x7f]", b"", value).strip(b" \t"))
"""All bytes that HTTP allows in the value of a header; tests/serving/test_raw_http.py sends others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models' folder, and beside it a model that is not offered."""
    folder = tmp_path_factory.mktemp("hostile")
    TinyModel(MODEL).write(folder / "models")
    TinyModel("secret").write(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    paths = {"MODELS_DIR": str(folder / "models"), "HUB_CACHE_DIR": str(folder / "hub")}
    with running_server(REQUIRED_MODELS=MODEL, HF_ENDPOINT="http://127.0.0.1:9", **paths) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def _nothing_was_touched(server: ServerProcess, folder: Path) -> Iterator[None]:
    """The requests of this file create no file, disclose no path, load no other model, and no request fails."""
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before
    assert [line for line in server.lines if str(folder) in line or not line.startswith("{")] == []
    loads = [event["model"] for event in server.events if event["event"].startswith("model_load")]
    assert set(loads) == {MODEL}
    assert not [event for event in server.events if event["event"] == "request_failed"]


def check(response: httpx.Response, folder: Path, *statuses: int) -> None:
    """Check that the answer has one of *statuses*, is short, and does not contain the path of *folder*."""
    assert response.status_code in statuses, response.text
    assert str(folder) not in response.text
    assert len(response.content) < 20_000


@given(name=names)
@example(name="../secret")
@example(name="..%2fsecret")
@example(name="tiny/../../secret")
@example(name="a" * 8_000)
@repeatable
def test_name_in_a_url_is_only_looked_up(client: httpx.Client, folder: Path, name: str) -> None:
    for encoded in (quote(name, safe=""), quote(name, safe="/%")):
        response = client.get(httpx.URL(client.base_url, raw_path=f"/models/{encoded}".encode()))
        if not name.strip("/") or not response.request.url.path.startswith("/models/"):
            continue  # the list of models, or another route: the client has resolved the dots
        check(response, folder, 200, 404)
        if response.status_code == 200:
            answer = response.json()
            assert answer.get("model_name", "").lower() == MODEL or answer["docs"] == "/docs"  # `/models/..` is `/`


@given(name=raw_names)
@repeatable
def test_bytes_in_a_url_are_only_looked_up(client: httpx.Client, folder: Path, name: bytes) -> None:
    response = client.get(httpx.URL(client.base_url, raw_path=b"/models/x" + quote(name, safe="").encode()))
    check(response, folder, 404)


@given(name=names | st.text())
@example(name="../secret")
@example(name="/etc/passwd")
@example(name="a" * 100_000)
@example(name="a/" * 50_000)
@example(name=MODEL + "\0")
@example(name=MODEL + " ")
@repeatable
def test_name_in_a_body_is_only_looked_up(client: httpx.Client, folder: Path, name: str) -> None:
    for path, body in (("/embed", {"text": TEXT}), ("/tokenize", {"texts": [TEXT]})):
        response = client.post(path, content=json.dumps({**body, "model_name": name}))
        check(response, folder, 400)
        assert response.json()["code"] == "unknown-model"
        assert TEXT not in response.text


@pytest.mark.parametrize("name", ["TINY/One", "/tiny/one/", "tiny%2fone", "TINY%2FONE", "%2e/tiny/one", "tiny//one"])
def test_case_and_outer_slashes_of_a_name_in_a_url_are_ignored_and_nothing_else(
    client: httpx.Client, name: str
) -> None:
    response = client.get(httpx.URL(client.base_url, raw_path=f"/models/{name}".encode()))
    assert response.status_code == (404 if name.startswith("%2e") else 200)


timeouts = st.floats().map(str) | st.integers(-(10**400), 10**400).map(str) | st.text(string.digits + "eE+-.naif_x ")


@given(value=timeouts.map(str.strip).map(str.encode) | field_bytes)
@example(value=b"1e400")
@example(value=b"inf")
@example(value=b"1e308")
@example(value=b"5e-324")
@example(value=b"9" * 4_000)
@repeatable
def test_any_timeout_is_applied_or_rejected(client: httpx.Client, folder: Path, value: bytes) -> None:
    headers = [(b"X-Request-Timeout", value), (b"Content-Type", b"application/json")]
    check(client.post("/embed", content=b'{"text": "one"}', headers=headers), folder, 200, 400, 504)


media = st.sampled_from(["application/octet-stream", "application/json", "arrow", "*/*", "octet-stream/*", "text/html"])
parameters = st.sampled_from(["", ";q=0", ";q=1e999", ";q=nan", ";q=-1", ";q=", ';a="', ";;=", ";q=0.5;q=x"])
accepts = st.lists(st.tuples(media, parameters).map("".join), max_size=20).map(",".join).map(str.encode)


@given(value=accepts | field_bytes)
@example(value=b"application/octet-stream" + b";a=b" * 4_000)
@example(value=b"arrow," * 4_000)
@example(value=b"application/octet-stream;q=0" + b" " * 8_000 + b"x")
@repeatable
def test_any_accept_header_gets_an_answer(client: httpx.Client, folder: Path, value: bytes) -> None:
    headers = [(b"Accept", value), (b"Content-Type", b"application/json")]
    check(client.post("/embed", content=b'{"text": "one"}', headers=headers), folder, 200)


@given(media_type=field_bytes, encoding=field_bytes)
@repeatable
def test_any_media_type_and_encoding_is_accepted_or_rejected(
    client: httpx.Client, folder: Path, media_type: bytes, encoding: bytes
) -> None:
    for headers in ([(b"Content-Type", media_type)], [(b"Content-Encoding", encoding)]):
        check(client.post("/embed", content=b'{"text": "one"}', headers=headers), folder, 200, 415)


@given(value=field_bytes)
@example(value=b"a" * 129)
@example(value=b'x","event":"forged')
@example(value="naïve\u202e".encode())
@example(value=b"a\tb")
@repeatable
def test_request_id_is_used_only_if_it_cannot_forge_a_log_line(client: httpx.Client, value: bytes) -> None:
    response = client.get("/health/live", headers=[(b"X-Request-ID", value)])
    request_id = response.headers["x-request-id"]
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", request_id)
    assert (request_id.encode() == value) == bool(re.fullmatch(rb"[A-Za-z0-9._:-]{1,128}", value))


@given(
    headers=st.lists(
        st.tuples(st.text(string.ascii_letters + string.digits + "-_.!#$", min_size=1, max_size=20), field_bytes),
        max_size=60,
    ).map(lambda pairs: [(f"X-{name}".encode(), value) for name, value in pairs])
)
@repeatable
def test_unknown_headers_are_ignored(client: httpx.Client, folder: Path, headers: list[tuple[bytes, bytes]]) -> None:
    known = {b"x-request-timeout", b"x-request-id"}
    check(client.get("/models", headers=[pair for pair in headers if pair[0].lower() not in known]), folder, 200)
