"""The running service and its optimised copies: written after the first load, reported, and replaced when damaged."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from engine.onnx_sessions import COPY_WEIGHTS
from tests.support.apps import running_app
from tests.support.optimised import WIDE, Place, write_wide_model

pytestmark = [pytest.mark.slow, pytest.mark.processes]  # each test starts the service two or three times


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_wide_model(tmp_path / "models")
    return Place(tmp_path / "hub" / "optimised-models", tmp_path / "models")


def service(place: Place) -> Any:
    return running_app(
        MODELS_DIR=str(place.models),
        REQUIRED_MODELS=WIDE,
        HUB_CACHE_DIR=str(place.folder.parent),
        OPTIMISED_MODELS_MAX_SIZE="1GB",
    )


def embed(client: TestClient[Litestar]) -> tuple[str, list[float]]:
    """Return fingerprint and vector of a text."""
    response = client.post("/embed", json={"text": "one two three", "normalize": False})
    assert response.status_code == 200, response.text
    return response.headers["X-Model-Fingerprint"], response.json()["embedding"]


def states(client: TestClient[Litestar]) -> Iterator[dict[str, Any] | None]:
    """Yield the state of the copy again and again; pytest's time-out ends a test that waits in vain."""
    while True:
        yield client.get(f"/models/{WIDE}").json()["optimised_copy"]


def wait_until_used(client: TestClient[Litestar]) -> dict[str, Any]:
    return next(state for state in states(client) if state and state["used"])


def hash_of(weights: Path) -> str | None:
    """Return the hash of a copy's weights; none while the copy is being replaced."""
    try:
        return hashlib.sha256(weights.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def test_the_first_start_writes_a_copy_and_each_later_one_uses_it(place: Place) -> None:
    with service(place) as client:
        embed(client)
        state = wait_until_used(client)
        adopted = embed(client)
    assert state == {"used": True, "size": state["size"], "reason": None}
    assert state["size"] > (place.copy / COPY_WEIGHTS).stat().st_size
    with service(place) as client:
        loaded = embed(client)
        assert next(states(client)) == state
    shutil.rmtree(place.folder)
    with service(place) as client:
        assert embed(client) == adopted == loaded


def test_a_required_model_is_loaded_anew_at_once_when_its_copy_turns_out_to_be_damaged(place: Place) -> None:
    with service(place) as client:
        embed(client)
        wait_until_used(client)
        expected = embed(client)
    weights = place.copy / COPY_WEIGHTS
    content = bytearray(weights.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    content[0] ^= 0x10
    weights.unlink()
    weights.write_bytes(content)
    weights.chmod(0o600)
    with service(place) as client:
        for state in states(client):  # the damaged copy is in use until it has been read
            if state and state["used"] and hash_of(weights) == digest:
                break
        assert embed(client) == expected
