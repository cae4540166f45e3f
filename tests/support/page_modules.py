"""Runs modules of the page in Node: those that only compute, and need no browser."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import killed_at_the_end

PAGE = Path(__file__).resolve().parents[2] / "static" / "page"
RUNNER = """
import { createInterface } from "node:readline";
for await (const line of createInterface({ input: process.stdin })) {
  const { program, given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ answer: await (await import(program)).default(given) }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.stack ?? error) }));
  }
}
"""


def node() -> str:
    """Return the command; if it is missing, skip the test, or fail it in CI."""
    found = shutil.which("node")
    if found is None:
        missing = "Node is not installed (Debian: apt-get install nodejs)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


class PageModules:
    """A process that runs programs which import the page's modules."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._numbers = count(1)

    def run(self, code: str, given: Any = None) -> Any:
        """Run *code*, the body of an async function of `given` after imports, and return what it returns.

        Both are passed as JSON.
        """
        imports = [line for line in code.splitlines() if line.lstrip().startswith("import ")]
        body = [line for line in code.splitlines() if line not in imports]
        program = self._folder / f"program-{next(self._numbers)}.js"
        program.write_text("\n".join([*imports, "export default async function (given) {", *body, "}"]))
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"program": program.as_uri(), "given": given}) + "\n")
        self._process.stdin.flush()
        result = json.loads(self._process.stdout.readline())
        assert "error" not in result, result["error"]
        return result.get("answer")


@contextmanager
def page_modules(folder: Path) -> Iterator[PageModules]:
    """Run Node on a copy of the page's modules in *folder*, where it can see that they are modules."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    runner = folder / "runner.js"
    runner.write_text(RUNNER)
    command = [node(), str(runner)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with killed_at_the_end(process):
        yield PageModules(process, folder)
