"""The Playground's code for OpenAI's client runs with the real one."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.support import BUNDLED, ENVIRONMENTS, TEST_TIMEOUT_S
from tests.support.page_modules import page_modules
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(TEST_TIMEOUT_S)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({}, "2 vectors of 384 numbers", id="plain"),
        pytest.param({"input_type": "query", "dtype": "ubinary"}, "2 vectors of 48 numbers", id="options"),
    ],
)
def test_code_for_the_openai_client_gets_the_vectors(
    server_with: Callable[..., ServerProcess], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    python = ENVIRONMENTS / "sdks" / "bin" / "python"
    if not python.exists():
        assert os.environ.get("CI") != "true", "run `make clients`"
        pytest.skip("needs OpenAI's library: run `make clients`")
    given = {
        "base": f"{server_with().url}/",
        "texts": ["it's", "👩\u200d👧 \u202e"],
        "options": {"model_name": BUNDLED, **options},
        "needsKey": False,
    }
    with page_modules(tmp_path) as modules:
        code = modules.run('import { snippets } from "./snippets.js";\nreturn snippets(given).openai;', given)
    done = subprocess.run([str(python), "-"], input=code, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{words}\n", done.stderr
