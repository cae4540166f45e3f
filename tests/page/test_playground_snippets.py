"""The Playground's code to copy does what it says: each program runs against a real server."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.page_modules import PageModules, node
from tests.support.servers import ServerProcess

KEY = "a-key-for-tests-0123456789"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = [
    """it's "quoted" $HOME `ls` $(ls) !! \\ \\n %s {x} ${y}""",
    "👩\u200d👧 שלום \u202e مرحبا \u2028\ufeff\u00a0",
    "tab\tand \x07 bell </script>",
]
SNIPPETS = 'import { snippets } from "./snippets.js";\nreturn snippets(given);'


def code(modules: PageModules, base: str, **changes: Any) -> Any:
    given = {"base": base, "texts": TEXTS, "options": {"model_name": MODEL}, "needsKey": False, **changes}
    return modules.run(SNIPPETS, given)


def run(command: list[str], program: str, folder: Path) -> str:
    return subprocess.run(
        command, input=program, capture_output=True, text=True, timeout=30, check=True, cwd=folder
    ).stdout


@pytest.fixture
def server(server_with: Callable[..., ServerProcess]) -> ServerProcess:
    return server_with(API_KEYS=KEY)


@pytest.mark.parametrize("options", [{}, {"input_type": "query", "dtype": "int8"}], ids=["plain", "options"])
def test_curl_gets_the_vectors(modules: PageModules, server: ServerProcess, tmp_path: Path, options: Any) -> None:
    program = code(modules, f"{server.url}/", needsKey=True, options={"model_name": MODEL, **options})["curl"]
    answer = json.loads(run(["bash", "-s"], program.replace("YOUR_API_KEY", KEY), tmp_path))
    assert answer.get("count") == len(TEXTS), answer
    assert all(isinstance(number, int if options else float) for number in answer["embeddings"][0])


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_programs_get_the_vectors(modules: PageModules, server: ServerProcess, tmp_path: Path, language: str) -> None:
    program = code(modules, f"{server.url}/", needsKey=True)[language].replace("YOUR_API_KEY", KEY)
    command = [sys.executable, "-"] if language == "python" else [node(), "--input-type=module"]
    assert run(command, program, tmp_path) == "3 vectors of 384 numbers\n"


def test_the_texts_in_each_language_are_the_texts(modules: PageModules, tmp_path: Path) -> None:
    """Shell and JavaScript print the body that they would send; Python evaluates its literals."""
    found = code(modules, "http://127.0.0.1:1/")
    shell = run(["bash", "-s"], found["curl"].replace("curl ", "printf '%s\\n' ", 1), tmp_path)
    assert json.loads(shell.partition("\n-d\n")[2])["texts"] == TEXTS
    script = (
        "globalThis.fetch = async (_, { body }) => { console.log(body); process.exit(0); };\n" + found["javascript"]
    )
    assert json.loads(run([node(), "--input-type=module"], script, tmp_path))["texts"] == TEXTS
    for language, indent in (("python", 8), ("openai", 4)):
        literal = found[language].partition("[\n")[2].partition(f"\n{' ' * indent}]")[0]
        assert eval(f"[{literal}]") == TEXTS  # noqa: S307 - it is our own code


def test_the_key_is_a_placeholder_and_only_there_if_one_is_needed(modules: PageModules) -> None:
    open_service, closed_service = (code(modules, "http://h/", needsKey=needed) for needed in (False, True))
    for language, program in closed_service.items():
        assert "YOUR_API_KEY" in program, language
        assert "YOUR_API_KEY" not in open_service[language], language


def test_addresses_below_a_prefix_are_kept(modules: PageModules) -> None:
    found = code(modules, "https://example.com/ai/")
    assert all("https://example.com/ai/embed/batch" in found[name] for name in ("curl", "python", "javascript"))
    assert 'base_url="https://example.com/ai/v1"' in found["openai"]


def test_all_options_are_in_each_program(modules: PageModules) -> None:
    options = {"model_name": MODEL, "input_type": "document", "dimensions": 64, "dtype": "uint8"}
    found = code(modules, "http://h/", options=options)
    for name in ("curl", "python", "javascript"):
        assert '"dtype": "uint8"' in found[name]
        assert '"dimensions": 64' in found[name]
    assert "dimensions=64," in found["openai"]
    assert 'extra_body={"input_type":"document","output_dtype":"uint8"},' in found["openai"]


def test_openai_code_is_python_and_says_what_the_api_lacks(modules: PageModules) -> None:
    program = code(modules, "http://h/", options={"model_name": MODEL, "dtype": "float16"})["openai"]
    compile(program, "openai", "exec")
    assert "# OpenAI's API has no float16: these vectors are float32\n" in program


def test_many_or_long_texts_are_shortened_and_the_code_says_so(modules: PageModules) -> None:
    found = code(modules, "http://h/", texts=["👧" * 5000, *(["b"] * 499)])
    assert all("3 of 500 texts, shortened" in program for program in found.values())
    assert all("👧" * 200 in program and "👧" * 201 not in program for program in found.values())
