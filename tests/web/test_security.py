"""Guarantees of SECURITY.md that no other test file proves."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.servers import ROOT, environment, running_server
from tests.support.tiny import TinyModel

pytestmark = pytest.mark.timeout(90)

WATCHED_LOAD = """
import json, sys
seen = []
FORBIDDEN = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
import config
from engine.catalog import read_catalog
from engine.encoder import load_encoder
catalog = read_catalog([config.BUNDLED_MODELS_DIR], bundled=config.BUNDLED_MODEL)
def watch(event, arguments):
    if event in FORBIDDEN:
        seen.append(event)
sys.addaudithook(watch)
encoder = load_encoder(catalog.get(config.BUNDLED_MODEL), hub_cache_dir=None)
print(json.dumps({"name": encoder.name, "seen": seen}))
"""


def test_loading_and_running_a_model_unpickles_nothing_and_starts_no_process() -> None:
    """A load runs the model, too: its self-check embeds texts. Python tells an audit hook of each such act."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_LOAD],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"name": "sentence-transformers/all-MiniLM-L6-v2", "seen": []}


def test_loading_and_running_a_model_leaves_no_file_behind(tmp_path: Path) -> None:
    """Nowhere that it could be told to the maker of a library later, and a read-only file system will do."""
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR")}
    for place in places.values():
        place.mkdir()
    # Under CI and with a word of somebody else's, ONNX Runtime would keep silent by itself.
    inherited = {name: value for name, value in environment({}).items() if name != "CI" and not name.startswith("ORT_")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_LOAD],
        cwd=ROOT,
        env={**inherited, **{name: str(place) for name, place in places.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == list(places.values())


def test_compressed_body_is_refused_before_it_is_inflated(base_url: str) -> None:
    bomb = gzip.compress(b'{"text": "' + b"a" * 50_000_000 + b'"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = httpx.post(f"{base_url}/embed", content=bomb, headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "not-json")


@pytest.mark.parametrize(
    ("origins", "are_allowed"),
    [
        pytest.param("*", False, id="any"),
        pytest.param("https://*.example", False, id="any-of-a-domain"),
        pytest.param("https://app.example", True, id="named"),
        pytest.param("https://app.example,*", False, id="named-beside-any"),
    ],
)
def test_only_origins_that_are_named_may_send_credentials(origins: str, tmp_path: Path, *, are_allowed: bool) -> None:
    TinyModel("tiny/one").write(tmp_path)
    origin = {"Origin": "https://app.example"}
    with running_server(CORS_ORIGINS=origins, MODELS_DIR=str(tmp_path), REQUIRED_MODELS="tiny/one") as server:
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for response in (
            httpx.options(f"{server.url}/embed", headers=asked),
            httpx.get(f"{server.url}/models", headers={**origin, "Cookie": "a=b"}),
            httpx.post(f"{server.url}/embed", json={"text": "one"}, headers=origin),
        ):
            assert response.headers["access-control-allow-origin"] in {"*", origin["Origin"]}
            assert ("access-control-allow-credentials" in response.headers) is are_allowed
