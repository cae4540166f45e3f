"""Real images and containers of the Dockerfile, with docker or podman, whichever answers (or CONTAINER_ENGINE).

`CONTAINER_BUILD_ARGS` are more arguments of `build`, such as `--network host --pull=never`.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from uuid import uuid4

import pytest

from tests.support.servers import ROOT

LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
START_S = 120

Done = subprocess.CompletedProcess[str]


@cache
def engine() -> str:
    """The command; without one that works the test is skipped, or fails where CI promises that all is there."""
    found = next(filter(answers, (os.environ.get("CONTAINER_ENGINE", "docker"), "podman")), None)
    if found is None:
        missing = "neither docker nor podman answers"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def answers(name: str) -> bool:
    """A command may be there without what does its work."""
    return bool(shutil.which(name)) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0


def call(*arguments: str, stdin: str = "") -> Done:
    """Run the engine's command, whatever comes of it."""
    return subprocess.run([engine(), *arguments], input=stdin, capture_output=True, text=True, check=False)


def succeed(*arguments: str, stdin: str = "") -> str:
    """What a command of the engine's writes; fails if it does not end well."""
    done = call(*arguments, stdin=stdin)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def build(tag: str, *, target: str = "production", arguments: Mapping[str, str] | None = None) -> Done:
    given = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
    more = shlex.split(os.environ.get("CONTAINER_BUILD_ARGS", ""))
    # podman's own format keeps no health check
    form = ["--format", "docker"] if engine() == "podman" else []
    return call("build", *form, *more, "--target", target, *given, "--tag", tag, str(ROOT))


class Container:
    """One that runs, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def execute(self, *command: str, stdin: str = "") -> Done:
        return call("exec", "--interactive", self.name, *command, stdin=stdin)

    def python(self, code: str) -> str:
        """What this program prints in the container."""
        return succeed("exec", "--interactive", self.name, "python", "-", stdin=code)

    def wait_until_healthy(self) -> None:
        end = time.monotonic() + START_S
        while (done := self.execute("python", "-m", "cli.health")).returncode != 0:
            assert time.monotonic() < end, f"{done.stdout}{done.stderr}\n{self.log}"

    @property
    def log(self) -> str:
        done = call("logs", self.name)
        return done.stdout + done.stderr

    @property
    def exit_code(self) -> int:
        return int(succeed("inspect", "--format", "{{.State.ExitCode}}", self.name))


@contextmanager
def running(image: str, *options: str) -> Iterator[Container]:
    """A container that has become healthy."""
    container = Container(f"fast-embedding-test-{uuid4().hex[:12]}")
    succeed("run", "--detach", "--name", container.name, *options, image)
    try:
        container.wait_until_healthy()
        yield container
    finally:
        call("rm", "--force", "--volumes", container.name)
