"""Guarantees of SECURITY.md that no other test file proves."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.apps import running_app
from tests.support.servers import ROOT, environment

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


def run_watched_load(variables: dict[str, str]) -> dict[str, object]:
    """Run WATCHED_LOAD with these environment variables, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_LOAD], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_loading_and_running_a_model_unpickles_nothing_and_starts_no_process() -> None:
    """Python reports each such act to an audit hook. A load runs the model, too: its self-check embeds texts."""
    assert run_watched_load(environment({})) == {"name": "sentence-transformers/all-MiniLM-L6-v2", "seen": []}


def test_loading_and_running_a_model_leaves_no_file_behind(tmp_path: Path) -> None:
    """A read-only file system is enough, and no library keeps anything that it could send to its maker later."""
    folders = {name: tmp_path / name for name in ("HOME", "TMPDIR")}
    for folder in folders.values():
        folder.mkdir()
    # With CI or an ORT_ variable set by somebody else, ONNX Runtime would send nothing by itself.
    inherited = {name: value for name, value in environment({}).items() if name != "CI" and not name.startswith("ORT_")}
    run_watched_load({**inherited, **{name: str(folder) for name, folder in folders.items()}})
    assert list(tmp_path.rglob("*")) == list(folders.values())


def test_compressed_body_is_rejected_before_it_is_inflated(base_url: str) -> None:
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
def test_only_named_origins_may_send_credentials(origins: str, tiny_models: Path, *, are_allowed: bool) -> None:
    origin = {"Origin": "https://app.example"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with running_app(CORS_ORIGINS=origins, MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as client:
        for response in (
            client.options("/embed", headers={**origin, **preflight}),
            client.get("/models", headers={**origin, "Cookie": "a=b"}),
            client.post("/embed", json={"text": "one"}, headers=origin),
        ):
            assert response.headers["access-control-allow-origin"] in {"*", origin["Origin"]}
            assert ("access-control-allow-credentials" in response.headers) is are_allowed
