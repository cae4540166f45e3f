"""Builds and runs real images, with CONTAINER_ENGINE, docker or podman, whichever responds first.

`CONTAINER_BUILD_ARGS` contains additional arguments of `build`, for example `--network host --pull=never`.
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
    """Return the engine's command. Without an engine, skip the test; in CI, fail it."""
    found = next(filter(responds, (os.environ.get("CONTAINER_ENGINE", "docker"), "podman")), None)
    if found is None:
        missing = "neither docker nor podman responds"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def responds(name: str) -> bool:
    """Whether the command is installed and its engine runs."""
    return bool(shutil.which(name)) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0


def call(*arguments: str, stdin: str = "") -> Done:
    """Run a command of the engine."""
    return subprocess.run([engine(), *arguments], input=stdin, capture_output=True, text=True, check=False)


def succeed(*arguments: str, stdin: str = "") -> str:
    """Run a command of the engine and return its output; fail the test if the command fails."""
    done = call(*arguments, stdin=stdin)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def build(tag: str, *, target: str = "production", arguments: Mapping[str, str] | None = None) -> Done:
    build_arguments = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
    more = shlex.split(os.environ.get("CONTAINER_BUILD_ARGS", ""))
    # podman's own format has no health check.
    image_format = ["--format", "docker"] if engine() == "podman" else []
    return call("build", *image_format, *more, "--target", target, *build_arguments, "--tag", tag, str(ROOT))


class Container:
    """A running container."""

    def __init__(self, name: str) -> None:
        self.name = name

    def execute(self, *command: str, stdin: str = "") -> Done:
        return call("exec", "--interactive", self.name, *command, stdin=stdin)

    def python(self, code: str) -> str:
        """Run a program in the container and return its output."""
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
    """Run a container that is healthy; remove it at the end of the block."""
    container = Container(f"fast-embedding-test-{uuid4().hex[:12]}")
    succeed("run", "--detach", "--name", container.name, *options, image)
    try:
        container.wait_until_healthy()
        yield container
    finally:
        call("rm", "--force", "--volumes", container.name)
