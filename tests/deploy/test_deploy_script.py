"""deploy.sh with stub_engine.sh in place of docker, podman and compose; test_deploy_for_real.py uses a real engine."""

import fcntl
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.processes import END_S, killed_at_the_end
from tests.support.servers import ROOT, running_server

pytestmark = pytest.mark.timeout(120)  # one deployment starts some hundred processes

SERVICE = "fast-embedding"
TOOLS = [
    *("awk", "basename", "bash", "cat", "cmp", "cp", "curl", "cut", "dirname", "env", "flock", "git", "grep", "head"),
    *("ls", "mkdir", "mktemp", "mv", "perl", "readlink", "rm", "sed", "sleep", "sort", "tail", "tee", "tr", "wc"),
]
LOOKUP_S = 4
"""How long a rolling update waits after each change of the replicas."""
SLEEP = """#!/bin/bash
case $1 in *.*) PATH=/bin:/usr/bin exec sleep "$1" ;; esac
echo "sleep $1" >>"$STUB/calls"
"""
KEY = "k" * 32
PRELOAD_STEP = next(
    line.removeprefix("RUN ")
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    if "cli download" in line
)
COMMANDS = ("deploy", "build", "rollback", "status", "logs", "restart", "stop", "test", "clean", "help")
NOT_CHANGED = "The running service was not changed."
BROKEN_TWO = {"next-image": "two", "broken/two": "exits"}
"""The next build produces image `two`, which exits at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code and output of the script."""

    code: int
    out: str
    err: str


class Machine:
    """A folder that contains deploy.sh, and a PATH whose engine and compose are the stub."""

    def __init__(self, parent: Path, *programs: str) -> None:
        self.stdin: int = subprocess.DEVNULL
        self.folder, self.state, self.programs = parent / "shop", parent / "state", parent / "bin"
        for name in ("images", "revisions", "containers", "networks", "volumes", "fail", "broken"):
            (self.state / name).mkdir(parents=True)
        self.programs.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.programs / tool).symlink_to(found)
        for program in programs:
            (self.programs / program).symlink_to(ROOT / "tests" / "support" / "stub_engine.sh")
        self.folder.mkdir()
        shutil.copy(ROOT / "deploy.sh", self.folder)
        for part in ("shell", "compose"):
            shutil.copytree(ROOT / "deploy" / part, self.folder / "deploy" / part)
        # Records pauses of whole seconds, and does not wait for them.
        (self.programs / "sleep").unlink()
        (self.programs / "sleep").write_text(SLEEP)
        (self.programs / "sleep").chmod(0o755)
        for name in ("docker-compose.yml", "Dockerfile", "nginx.conf"):
            (self.folder / name).write_text("# not read by the stub\n")
        (self.folder / "main.py").write_text('VERSION = "9.8.7"\n')
        self.set("compose-version", "Docker Compose version v2.29.1")
        self.set("hash", "h1")
        self.set("next-image", "one")

    def run(self, *arguments: str, **variables: str) -> Outcome:
        done = subprocess.run(
            [self.folder / "deploy.sh", *arguments],
            env=self.environment(variables),
            cwd="/",
            stdin=self.stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "stub:" not in done.stderr, "the stub does not know a call"
        return Outcome(done.returncode, done.stdout, done.stderr)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        fixed = {"PATH": str(self.programs), "STUB": str(self.state), "HOME": str(self.state)}
        unused_port = "1"
        return {**fixed, "PORT": unused_port, "WAIT_SECONDS": "1", **variables}

    def set(self, name: str, text: str = "") -> None:
        """Set a value of the stub."""
        (self.state / name).write_text(text)

    def fail(self, call: str, words: str) -> None:
        """Let *call* fail with *words*."""
        self.set(f"fail/{call}", f"{words}\n")

    def next_image(self, name: str, *, broken: str = "") -> "Machine":
        """Let the next build produce *name*; *broken*: `silent` never becomes healthy, `exits` exits at once."""
        self.set("next-image", name)
        if broken:
            self.set(f"broken/{name}", broken)
        return self

    def deploy(self, *arguments: str, **variables: str) -> "Machine":
        """Deploy successfully, and forget the calls."""
        outcome = self.run("deploy", *arguments, **variables)
        assert outcome.code == 0, outcome.err
        self.set("calls")
        return self

    @property
    def calls(self) -> list[str]:
        return (self.state / "calls").read_text().splitlines() if (self.state / "calls").exists() else []

    def called(self, words: str) -> list[str]:
        return [call for call in self.calls if words in call]

    @property
    def images(self) -> dict[str, str]:
        """Image ids by tag."""
        return {path.name.replace("%", "/"): path.read_text() for path in (self.state / "images").iterdir()}

    def containers(self, service: str = SERVICE) -> dict[str, tuple[str, str]]:
        """Image and state of the service's containers, by id."""
        folders = [path for path in (self.state / "containers").iterdir() if (path / "service").read_text() == service]
        return {path.name: ((path / "image").read_text(), (path / "state").read_text()) for path in folders}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which nothing is deployed."""
    return Machine(tmp_path, "docker")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stub's state after a first deployment of each shape."""
    shapes = {"single": ("deploy",), "ha": ("deploy", "--profile", "ha")}
    return {
        name: Machine(tmp_path_factory.mktemp(name), "docker").deploy(*arguments[1:]).state
        for name, arguments in shapes.items()
    }


@pytest.fixture
def deployed(machine: Machine, states: dict[str, Path]) -> Machine:
    """A machine on which image `one` runs in a single container."""
    shutil.copytree(states["single"], machine.state, dirs_exist_ok=True)
    return machine


@pytest.fixture
def cluster(machine: Machine, states: dict[str, Path]) -> Machine:
    """A machine on which three replicas of image `one` run behind nginx."""
    shutil.copytree(states["ha"], machine.state, dirs_exist_ok=True)
    return machine


def commit(folder: Path) -> str:
    """Make *folder* a git repository with one commit, and return its short revision."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    shown = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


# --- Command line and settings --------------------------------------------------------------------------------------


def test_help_lists_every_command_and_fits_a_terminal(machine: Machine) -> None:
    outcome = machine.run("help")
    lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err) == (0, "")
    assert [name for name in COMMANDS if not any(line.startswith(f"  {name} ") for line in lines)] == []
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nonsense",
        "--yes",
        "deploy now",
        "deploy --yes",
        "deploy --scale",
        "deploy --scale 3",
        "deploy --profile ha --scale 0",
        "deploy --wait soon",
        "deploy --image=two$words",
        "deploy --image=registry.example/embedding@sha256:0123",
        "deploy --no-build=1",
        "stop --wait 3",
    ],
)
def test_usage_error_exits_with_2_and_changes_nothing(machine: Machine, arguments: str) -> None:
    outcome = machine.run(*arguments.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert "help" in outcome.err
    assert not [call for call in machine.calls if " up " in call or " build " in call]


def test_script_runs_through_a_link_from_any_folder(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.folder / "deploy.sh")
    done = subprocess.run([tmp_path / "link", "build"], env=machine.environment({}), cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_commands_of_the_guide_work_in_their_order(machine: Machine) -> None:
    guide = (ROOT / "docs" / "DOCKER_SETUP.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\./deploy\.sh ([^#\n]+)", guide, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        outcome = machine.run(*command.split(), STUB_PYTHON="false")
        assert outcome.code == 0, f"{command}: {outcome.err}"


def test_env_file_is_read_as_compose_reads_it(machine: Machine) -> None:
    lines = (
        "IMAGE=other:1",
        'IMAGE="other:1"',
        "export IMAGE='other:1' # why",
        "IMAGE = other:1  # why\r",
        "#IMAGE=x\nIMAGE=other:1",
    )
    for line in lines:
        (machine.folder / ".env").write_text(f"PORT=1\n{line}\nOTHER=IMAGE=y\n")
        assert machine.run("build").out == "other:1\n", line


def test_names_without_effect_in_the_env_file_are_reported(machine: Machine) -> None:
    for name in ("docker-compose.yml", "docker-compose.override.yml"):
        shutil.copy(ROOT / name, machine.folder)
    unused = ["MAX_BATCH_SISE", "HOST", "max_batch_size"]  # a typo, fixed in the image, and compose minds the case
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    settings = set(re.findall(r"^# ([A-Z0-9_]+)=|^#   ([A-Z0-9_]+) ", example, re.MULTILINE))
    known = {name for pair in settings for name in pair if name} - {"HOST", "MODELS_DIR", "HUB_CACHE_DIR"}
    assert len(known) > 40
    lines = [f"{name}=1" for name in ("COMPOSE_PARALLEL_LIMIT", "WAIT_SECONDS", *sorted(known))]
    lines += [*(f" export {name} = 1" for name in unused), "# NOTHING=1"]
    (machine.folder / ".env").write_text("\n".join(lines) + "\n")
    outcome = machine.run("deploy", **dict.fromkeys(known, ""))
    assert re.findall(r"^warn  \.env: (\S+) has no effect", outcome.err, re.MULTILINE) == unused


def test_project_name_is_that_of_compose(machine: Machine) -> None:
    for variables, expected in (({}, "shop"), ({"COMPOSE_PROJECT_NAME": "mine"}, "mine")):
        machine.run("deploy", **variables)
        assert machine.called(f"docker compose -p {expected} up")


# --- Build and deploy -----------------------------------------------------------------------------------------------


def test_first_deployment_builds_tests_the_start_and_waits_for_health(machine: Machine) -> None:
    machine.set("port", "8000")
    machine.set("check", "ok    values\nwarn  callers   anyone may call\n")
    outcome = machine.run("deploy", SHUTDOWN_TIMEOUT="50")
    assert (outcome.code, outcome.out) == (0, "http://localhost:8000\n")
    assert (machine.state / "grace").read_text() == "60s", "longer than SHUTDOWN_TIMEOUT"
    assert list(machine.containers().values()) == [("one", "running")]
    order = [" build ", " run -d --no-deps ", " up -d --no-build", " exec "]
    first = [next(index for index, call in enumerate(machine.calls) if words in call) for words in order]
    assert first == sorted(first)
    assert "warn  callers" in outcome.err
    assert "using the defaults" in outcome.err
    assert not (machine.folder / ".env").exists()
    assert "\033" not in outcome.err, "colour is for terminals"


def test_second_deployment_of_the_same_image_changes_nothing(deployed: Machine) -> None:
    before = deployed.containers()
    assert deployed.run("deploy").code == 0
    assert deployed.containers() == before
    assert deployed.called(" run -d") == []


def test_rollback_restores_the_previous_image_and_can_be_undone(deployed: Machine) -> None:
    for command, runs, previous in (("deploy", "two", "one"), ("rollback", "one", "two"), ("rollback", "two", "one")):
        assert deployed.next_image("two").run(command).code == 0
        assert list(deployed.containers().values()) == [(runs, "running")]
        assert deployed.images["fast-embedding:latest"] == runs
        assert deployed.images["fast-embedding:previous"] == previous


def test_changed_settings_are_tested_before_they_are_deployed(deployed: Machine) -> None:
    deployed.set("hash", "h2")
    deployed.set("trials")
    assert deployed.run("deploy").code == 0
    assert (deployed.state / "trials").read_text() == "fast-embedding:unknown\n"
    assert len(deployed.containers()) == 1


def test_image_is_labelled_with_its_revision_and_the_same_commit_builds_the_same_image(machine: Machine) -> None:
    revision = commit(machine.folder)
    for _ in range(2):
        machine.run("build", PRELOAD_MODELS="a/b c/d")
    first, second = machine.called(" build ")
    assert first == second
    for words in (
        f"REVISION={revision} ",
        f"--label org.opencontainers.image.revision={revision} ",
        f"-t fast-embedding:{revision} ",
        *("VERSION=9.8.7 ", "CREATED=20", "PRELOAD_MODELS=a/b c/d ", "--target production"),
    ):
        assert words in first
    (machine.folder / "main.py").write_text("")
    machine.run("build")
    assert f"REVISION={revision}-dirty " in machine.called(" build ")[2]


def test_only_the_deployed_and_the_previous_image_keep_their_revision_tags(machine: Machine) -> None:
    machine.set("images/fast-embedding:mine", "one")
    revisions = []
    for number in range(3):
        (machine.folder / "main.py").write_text(f"VERSION = '{number}'\n")
        shutil.rmtree(machine.folder / ".git", ignore_errors=True)
        revisions.append(commit(machine.folder))
        machine.next_image(f"image{number}").deploy()
    kept = ["latest", "previous", "mine", *revisions[1:]]
    assert set(machine.images) == {f"fast-embedding:{tag}" for tag in kept}


def test_no_build_uses_the_local_image_or_pulls_it(machine: Machine) -> None:
    machine.run("build")
    machine.set("calls")
    assert machine.run("deploy", "--no-build").code == 0
    assert machine.called(" build ") == machine.called(" pull ") == []
    assert machine.run("deploy", "--no-build", "--image=registry.example:5000/shop/embedding:1.2").code == 0
    assert machine.called(" pull registry.example:5000/shop/embedding:1.2")
    assert list(machine.containers().values()) == [("pulled", "running")]


# --- Failing deployments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["silent", "exits"])
def test_unhealthy_image_is_replaced_by_the_previous_one(deployed: Machine, broken: str) -> None:
    deployed.set("logs", "the last log line")
    outcome = deployed.next_image("two", broken=broken).run("deploy")
    assert (outcome.code, outcome.out) == (1, "")
    assert "the last log line" in outcome.err
    assert "Rolled back" in outcome.err
    assert list(deployed.containers().values()) == [("one", "running")]
    assert deployed.images["fast-embedding:latest"] == "one"
    assert "fast-embedding:previous" not in deployed.images


def test_failed_deployment_keeps_the_previous_tag(deployed: Machine) -> None:
    deployed.next_image("two").deploy().next_image("three", broken="exits")
    assert deployed.run("deploy").code == 1
    assert deployed.images["fast-embedding:latest"] == "two"
    assert deployed.images["fast-embedding:previous"] == "one"


def test_failed_first_deployment_leaves_nothing_running(machine: Machine) -> None:
    outcome = machine.next_image("one", broken="exits").run("deploy")
    assert outcome.code == 1
    assert "Removing the new containers" in outcome.err
    assert machine.containers() == {}
    assert "fast-embedding:latest" not in machine.images


@pytest.mark.parametrize(
    ("programs", "deployed", "state", "command", "message"),
    [
        ("", "", {}, "deploy", "Install Docker (https://docs.docker.com/engine/install/)"),
        ("docker", "", {"fail/docker": "permission denied while trying to connect"}, "deploy", "usermod -aG docker"),
        ("docker", "", {"fail/docker": "Cannot connect to the Docker daemon"}, "deploy", "systemctl start docker"),
        ("docker", "", {"fail/docker": "Try `podman machine start`"}, "deploy", "podman machine start."),
        ("docker", "", {"no-plugin": ""}, "deploy", "compose is not"),
        ("docker docker-compose", "", {"no-plugin": "", "compose-version": "version 1.25.0"}, "deploy", "is too old"),
        ("docker", "", {"hang": ""}, "deploy", "The trial start did not end within 1 s"),
        (
            "docker",
            "single",
            {"hash": "h2", "broken/one": "silent"},
            "deploy",
            "Cannot roll back: the image is the same",
        ),
        ("docker", "single", {**BROKEN_TWO, "broken/one": "exits"}, "deploy", "THE ROLLBACK ALSO FAILED"),
        ("docker", "single", {"broken/nginx": "exits"}, "deploy --profile=ha", "shop-nginx"),
        ("docker", "single", {}, "rollback", "There is no previous image"),
        ("docker", "", {}, "restart", "There is nothing to restart"),
        ("docker", "", {}, "test --url http://127.0.0.1:1", "http://127.0.0.1:1 does not answer"),
    ],
)
def test_failure_is_reported_with_its_reason(
    tmp_path: Path,
    states: dict[str, Path],
    *,
    programs: str,
    deployed: str,
    state: dict[str, str],
    command: str,
    message: str,
) -> None:
    machine = Machine(tmp_path, *programs.split())
    if deployed:
        shutil.copytree(states[deployed], machine.state, dirs_exist_ok=True)
    for name, text in state.items():
        machine.set(name, text)
    outcome = machine.run(*command.split())
    assert outcome.code == 1
    assert message in outcome.err
    assert not machine.containers("trial"), "a trial container must not remain"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Bad settings: PORT='x' is not allowed: input should be ...", "Correct it in .env"),
        ("FAIL  values           MAX_BATCH_SIZE='many' is not allowed", "Correct it in .env"),
        ("FAIL  HUB_CACHE_DIR    cannot be written", "chown -R 10001"),
        ("PermissionError: [Errno 13] Permission denied: '/data/hub'", "chown -R 10001"),
        ("FAIL  memory           100 MB available", "fewer or smaller models"),
        ("write /x: no space left on device", "The disk is full"),
        ("Range of CPUs is from 0.01 to 1.00", "Set a lower CPUS"),
        ("Bind for 0.0.0.0:8000 failed: port is already allocated", "set PORT in .env"),
        ("rootlessport listen tcp 0.0.0.0:80: bind: address already in use", "set PORT in .env"),
        ("all predefined address pools have been fully subnetted", "network prune"),
        ("ERROR: BuildKit is enabled but the buildx component is missing or broken.", "docker-buildx-plugin"),
        ("dial tcp: lookup registry-1.docker.io: no such host", "The network is unreachable"),
        ("pull access denied for fast-embedding, repository does not exist", "docker login"),
        ("env file /x/.env not found: no such file or directory", "cp .env.example .env"),
    ],
)
def test_known_failures_come_with_advice(words: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"some line\n{words}\n")
    code = f"source deploy/shell/messages.sh; engine=docker; explain_failure {tmp_path}/log"
    done = subprocess.run(["bash", "-euc", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    assert done.stderr.count("  -> ") == 1
    assert advice in done.stderr


@pytest.mark.parametrize(
    ("step", "arguments", "words", "expected"),
    [
        pytest.param("config", (), "env file .env not found", "cp .env.example .env", id="compose-file"),
        pytest.param("build", (), "no space left on device", "The disk is full", id="build"),
        pytest.param(
            "build",
            (),
            f"No model named 'a/c' is offered.\nThe command '/bin/sh -c {PRELOAD_STEP}' returned a non-zero code: 2",
            "PRELOAD_MODELS=a/c",
            id="preload-with-docker",
        ),
        pytest.param(
            "build",
            (),
            f'Error: building at STEP "RUN {PRELOAD_STEP}": while running runtime: exit status 2',
            "PRELOAD_MODELS=a/c",
            id="preload-with-podman",
        ),
        pytest.param("pull", ("--no-build", "--image=other:1"), "unauthorized: no", "cannot be pulled", id="pull"),
        pytest.param("check", (), "FAIL  memory           100 MB", "fewer or smaller models", id="trial-start"),
    ],
)
def test_failure_before_the_rollout_changes_nothing(
    deployed: Machine, step: str, arguments: tuple[str, ...], words: str, expected: str
) -> None:
    before = deployed.containers()
    deployed.next_image("two").fail(step, words)
    outcome = deployed.run("deploy", *arguments, PRELOAD_MODELS="a/c")
    assert outcome.code == 1
    assert words in outcome.err
    assert expected in outcome.err
    assert deployed.containers() == before
    assert deployed.images["fast-embedding:latest"] == "one"


def test_failure_of_compose_restores_the_old_image(deployed: Machine) -> None:
    deployed.next_image("two").fail("up-two", "port is already allocated")
    outcome = deployed.run("deploy")
    assert outcome.code == 1
    assert "set PORT in .env" in outcome.err
    assert list(deployed.containers().values()) == [("one", "running")]


def test_port_may_be_used_by_the_service_itself_but_not_by_another_program(deployed: Machine) -> None:
    before = deployed.containers()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        outcome = deployed.run("deploy", PORT=port)
        deployed.set("port", port)
        assert deployed.run("deploy", PORT=port).code == 0
    assert outcome.code == 1
    assert NOT_CHANGED in outcome.err
    assert deployed.containers() == before


def test_interrupted_deployment_rolls_back_and_keeps_the_status_of_the_signal(deployed: Machine) -> None:
    deployed.next_image("two", broken="silent")
    script = subprocess.Popen(
        [deployed.folder / "deploy.sh", "deploy", "--wait=60"],
        env=deployed.environment({}),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_the_end(script):
        assert script.stderr
        line = ""
        while "Waiting until healthy" not in line:
            line = script.stderr.readline()
            assert line
        script.terminate()
        output = script.stderr.read()
        assert script.wait(END_S) == 143, output
    assert "Rolled back" in output
    assert list(deployed.containers().values()) == [("one", "running")]


@pytest.mark.parametrize("has_flock", [True, False], ids=["flock", "perl"])
def test_second_deploy_script_in_the_same_folder_is_refused(machine: Machine, *, has_flock: bool) -> None:
    if not has_flock:
        (machine.programs / "flock").unlink(missing_ok=True)
    folder = os.open(machine.folder, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    outcome = machine.run("deploy")
    os.close(folder)
    assert outcome.code == 1
    assert "Another deploy.sh is running" in outcome.err
    assert machine.calls == []
    assert machine.run("build").code == 0


# --- Replicas behind nginx ------------------------------------------------------------------------------------------


def test_deploy_keeps_replicas_and_nginx_unless_options_change_them(cluster: Machine) -> None:
    before = cluster.containers()
    assert [image for image, _ in before.values()] == ["one"] * 3
    assert len(cluster.containers("nginx")) == len(cluster.containers("redis")) == 1
    assert cluster.run("deploy").code == 0
    assert cluster.containers() == before
    # The override file would publish one port for all replicas.
    assert all("-p shop -f docker-compose.yml --profile ha" in call for call in cluster.called("compose -p"))
    assert cluster.run("deploy", "--scale", "5").code == 0
    assert len(cluster.containers()) == 5
    assert set(before) < set(cluster.containers())
    assert cluster.run("deploy", "--profile", "none").code == 0
    assert len(cluster.containers()) == 1
    assert cluster.containers("nginx") == cluster.containers("redis") == {}


def test_rolling_update_replaces_one_replica_after_another(cluster: Machine) -> None:
    old = set(cluster.containers())
    assert cluster.next_image("two").run("deploy").code == 0
    assert [image for image, _ in cluster.containers().values()] == ["two"] * 3
    changes = [
        call.split()[1] if " stop " in call else "up" if " up " in call else call
        for call in cluster.calls
        if " stop " in call or " --no-recreate " in call or call.startswith("sleep")
    ]
    assert changes == ["up", f"sleep {LOOKUP_S}", "stop", f"sleep {LOOKUP_S}"] * 3
    assert [call.split()[-1] for call in cluster.called(" stop ")] == sorted(old)


def test_pause_is_longer_than_nginx_needs_to_look_up_the_replicas() -> None:
    configuration = (ROOT / "nginx.conf").read_text(encoding="utf-8")
    [lookup_s] = re.findall(r"#dns resolver [0-9.]+ valid=(\d+)s", configuration)
    [timeout_s] = re.findall(r"#dns resolver_timeout (\d+)s", configuration)
    assert int(lookup_s) + int(timeout_s) <= LOOKUP_S


def test_old_replicas_keep_running_if_the_new_one_is_unhealthy(cluster: Machine) -> None:
    before = cluster.containers()
    outcome = cluster.next_image("two", broken="silent").run("deploy")
    assert outcome.code == 1
    assert "Rolled back" in outcome.err
    assert cluster.containers() == before
    assert cluster.called(" stop ") == []


def test_bad_nginx_configuration_changes_nothing(cluster: Machine) -> None:
    before = cluster.containers()
    cluster.next_image("two").fail("nginx", "unknown directive in /etc/nginx/nginx.conf:3")
    outcome = cluster.run("deploy")
    assert outcome.code == 1
    assert "nginx.conf:3" in outcome.err
    assert cluster.containers() == before


@pytest.mark.parametrize("file", ["nginx.conf", "deploy/compose/start-nginx.sh"])
def test_changed_nginx_configuration_restarts_nginx(cluster: Machine, file: str) -> None:
    (cluster.folder / file).write_text("# changed\n")
    assert "nginx.conf has changed" in cluster.run("deploy").err
    assert len(cluster.called(" restart ")) == 1


def test_restart_restarts_one_replica_at_a_time(cluster: Machine) -> None:
    assert cluster.run("restart").code == 0
    steps = [
        call.split()[1] for call in cluster.calls if " restart " in call or "cli.health" in call or call[:5] == "sleep"
    ]
    assert steps == ["restart", "exec", str(LOOKUP_S)] * 3


@pytest.mark.parametrize("stopped", ["all", "nginx"])
def test_deploy_starts_all_stopped_replicas_again(cluster: Machine, stopped: str) -> None:
    if stopped == "all":
        cluster.run("stop")
    else:
        [proxy] = cluster.containers("nginx")
        (cluster.state / "containers" / proxy / "state").write_text("exited")
    assert cluster.run("deploy", "--no-build").code == 0
    assert [state for _, state in cluster.containers().values()] == ["running"] * 3
    assert [state for _, state in cluster.containers("nginx").values()] == ["running"]


# --- status, logs, stop, restart, clean -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def protected_service() -> Iterator[str]:
    with running_server(API_KEYS=KEY) as server:
        yield server.url


def test_status_fits_one_screen(deployed: Machine, protected_service: str) -> None:
    deployed.set("port", "8000")
    outcome = deployed.run("status", STUB_PYTHON=sys.executable, PORT=str(urlsplit(protected_service).port))
    assert outcome.code == 0
    for words in ("shop", "revision unknown", "http://localhost:8000", "healthy", "250MiB / 2GiB", "uptime    "):
        assert words in outcome.out
    assert "models    sentence-transformers/all-MiniLM-L6-v2\n" in outcome.out
    assert len(outcome.out.splitlines()) < 15


@pytest.mark.parametrize("state", ["nothing", "unhealthy", "stopped"])
def test_status_fails_unless_the_service_is_healthy(machine: Machine, states: dict[str, Path], state: str) -> None:
    if state != "nothing":
        shutil.copytree(states["single"], machine.state, dirs_exist_ok=True)
    if state == "unhealthy":
        machine.set("broken/one", "silent")
    if state == "stopped":
        machine.run("stop")
    outcome = machine.run("status", STUB_PYTHON="false")
    assert outcome.code == 1
    assert {"nothing": "nothing", "unhealthy": "unhealthy", "stopped": "exited"}[state] in outcome.out


def test_logs_passes_its_arguments_to_compose(machine: Machine) -> None:
    assert machine.run("logs", "-f", "--since", "1m").out == "log lines\n"
    assert machine.called("logs -f --since 1m")


def test_stop_waits_for_accepted_requests_and_deploy_starts_the_service_again(deployed: Machine) -> None:
    assert deployed.run("stop", SHUTDOWN_TIMEOUT="50").code == 0
    assert [call.split()[2:4] for call in deployed.called(" stop ")] == [["-t", "60"]]
    assert list(deployed.containers().values()) == [("one", "exited")]
    assert deployed.run("stop").code == 0
    assert deployed.run("deploy").code == 0
    assert list(deployed.containers().values()) == [("one", "running")]


def test_clean_lists_and_removes_only_what_belongs_to_the_project(deployed: Machine) -> None:
    deployed.deploy(COMPOSE_PROJECT_NAME="neighbour")
    for name in ("redis:7-alpine", "fast-embedding:mine"):
        deployed.set(f"images/{name}", "one")
    outcome = deployed.run("clean", "--yes")
    assert outcome.code == 0
    for words in ("container  shop-fast-embedding-1 (running)", "volume     shop_data", "network    shop_default"):
        assert words in outcome.err
    assert [path.name for path in (deployed.state / "volumes").iterdir()] == ["neighbour_data"]
    assert len(deployed.containers()) == 1
    assert set(deployed.images) == {"redis:7-alpine", "fast-embedding:mine"}
    again = deployed.run("clean")
    assert again.code == 0
    assert "nothing" in again.err


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1), ("no", 1), (None, 1)])
def test_clean_needs_a_confirmation(deployed: Machine, answer: str | None, code: int) -> None:
    if answer is None:  # no terminal
        outcome = deployed.run("clean")
        assert "--yes" in outcome.err
    else:
        ours, its = pty.openpty()
        with os.fdopen(ours, "w") as terminal, os.fdopen(its) as end:
            terminal.write(f"{answer}\n")
            terminal.flush()
            deployed.stdin = end.fileno()
            outcome = deployed.run("clean")
    assert outcome.code == code
    assert len(deployed.containers()) == code


def test_clean_reports_what_it_could_not_remove_and_removes_the_rest(deployed: Machine) -> None:
    deployed.fail("rm-shop_data", "volume is in use")
    outcome = deployed.run("clean", "--yes")
    assert outcome.code == 1
    assert "Not removed: volume shop_data" in outcome.err
    assert "volume is in use" in outcome.err
    assert deployed.containers() == {}


# --- Engines and compose --------------------------------------------------------------------------------------------


def test_podman_is_used_if_docker_does_not_respond_or_if_it_is_preferred(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docker", "podman")
    assert machine.run("deploy", CONTAINER_ENGINE="podman").code == 0
    assert "--format docker" in machine.called("podman build")[0], "podman's own format has no health check"
    machine.set("calls")
    machine.fail("docker", "Cannot connect")
    assert machine.run("deploy").code == 0
    assert machine.called("podman compose -p shop up")


def test_unknown_engine_is_reported(machine: Machine) -> None:
    assert "CONTAINER_ENGINE=dokcer" in machine.run("deploy", CONTAINER_ENGINE="dokcer").err


def test_compose_v1_is_used_if_the_plugin_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docker", "docker-compose")
    machine.set("no-plugin")
    machine.set("compose-version", "docker-compose version 1.29.2, build unknown")
    assert machine.run("deploy").code == 0
    assert machine.called("docker-compose -p shop up -d --no-build")


def test_podman_compose_has_to_recreate_containers_to_use_a_new_image(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "podman", "podman-compose")
    machine.set("no-plugin")
    machine.set("compose-version", "podman-compose version 1.0.6")
    assert machine.deploy().next_image("two").run("deploy").code == 0
    assert machine.called("podman-compose -p shop up -d --no-build --scale fast-embedding=1 --force-recreate")


# --- test -----------------------------------------------------------------------------------------------------------


def test_test_command_sends_requests_with_the_key(machine: Machine, protected_service: str) -> None:
    outcome = machine.run("test", "--url", protected_service, API_KEY=KEY)
    assert outcome.code == 0, outcome.err
    lines = [line.split()[:2] for line in outcome.out.splitlines()]
    assert lines == [["ok", "/health"], ["ok", "/embed"], ["ok", "/embed/batch"]]
    without_key = machine.run("test", "--url", protected_service)
    assert without_key.code == 1
    assert "FAIL  /embed" in without_key.out
    assert "API_KEY=" in without_key.err
