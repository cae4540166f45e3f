import fcntl
import os
import pty
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.servers import ROOT, running_server

pytestmark = pytest.mark.timeout(120)  # a deployment is some hundred processes; machines may be busy

SERVICE = "fast-embedding"
TOOLS = (
    *(
        "awk",
        "basename",
        "bash",
        "cat",
        "cmp",
        "cp",
        "curl",
        "cut",
        "dirname",
        "env",
        "flock",
        "git",
        "grep",
        "head",
        "ls",
        "mktemp",
        "mv",
    ),
    *("perl", "readlink", "rm", "mkdir", "sed", "sleep", "sort", "tail", "tee", "tr", "wc"),
)
KEY = "k" * 32
PRELOADING = next(
    line.removeprefix("RUN ")
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    if "cli download" in line
)
COMMANDS = ("deploy", "build", "rollback", "status", "logs", "restart", "stop", "test", "clean", "help")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the script ended, and what it wrote."""

    code: int
    out: str
    err: str


class Machine:
    """A folder with the script in it, and programs of which each engine and compose is tests/support/stub_engine.sh."""

    def __init__(self, parent: Path, *programs: str) -> None:
        self.engines = programs
        self.snapshots = parent.parent / "after-the-first-deployment"  # as each test would have to make it again
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
        shutil.copytree(ROOT / "deploy" / "shell", self.folder / "deploy" / "shell")
        for name in ("docker-compose.yml", "Dockerfile", "nginx.conf"):
            (self.folder / name).write_text("# the stub does not read it\n")
        (self.folder / "main.py").write_text('VERSION = "9.8.7"\n')
        self.set("compose-version", "Docker Compose version v2.29.1")
        self.set("hash", "h1")
        self.next_image("one")

    def run(self, *arguments: str, variables: Mapping[str, str] | None = None, stdin: int | None = None) -> Outcome:
        done = subprocess.run(
            [self.folder / "deploy.sh", *arguments],
            env=self.environment(variables),
            cwd="/",
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "stub:" not in done.stderr, "the stub was asked for something that it does not know"
        return Outcome(done.returncode, done.stdout, done.stderr)

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            "PATH": str(self.programs),
            "STUB": str(self.state),
            "HOME": str(self.state),
            "PORT": "1",  # nobody listens there
            "WAIT_SECONDS": "1",
            **(variables or {}),
        }

    def set(self, name: str, text: str = "") -> None:
        """What the stub finds under this name."""
        (self.state / name).write_text(text)

    def fail(self, what: str, words: str) -> None:
        self.set(f"fail/{what}", f"{words}\n")

    def next_image(self, name: str, *, broken: str = "") -> None:
        """What the next build gives; *broken*: `silent` never gets healthy, `ends` ends at once."""
        self.set("next-image", name)
        if broken:
            self.set(f"broken/{name}", broken)

    def deployed(self, *arguments: str, variables: Mapping[str, str] | None = None) -> "Machine":
        """The machine itself, after a deployment that went well."""
        files = sorted(path for path in self.state.rglob("*") if path.is_file())
        before = [(str(path.relative_to(self.state)), path.read_text()) for path in files]
        told = repr((self.engines, arguments, variables, before))
        snapshot = self.snapshots / sha256(told.encode()).hexdigest()
        is_first = not (self.state / "count").exists()
        if is_first and snapshot.exists():
            shutil.copytree(snapshot, self.state, dirs_exist_ok=True)
            return self
        outcome = self.run("deploy", *arguments, variables=variables)
        assert outcome.code == 0, outcome.err
        self.set("calls")
        if is_first:
            shutil.copytree(self.state, snapshot)
        return self

    @property
    def calls(self) -> list[str]:
        return (self.state / "calls").read_text().splitlines() if (self.state / "calls").exists() else []

    def called(self, words: str) -> list[str]:
        return [call for call in self.calls if words in call]

    @property
    def images(self) -> dict[str, str]:
        """Tags, and the image that each one means."""
        return {path.name.replace("%", "/"): path.read_text() for path in (self.state / "images").iterdir()}

    def containers(self, service: str = SERVICE) -> dict[str, tuple[str, str]]:
        """The service's containers: each one's image and state."""
        folders = [path for path in (self.state / "containers").iterdir() if (path / "service").read_text() == service]
        return {path.name: ((path / "image").read_text(), (path / "state").read_text()) for path in folders}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "docker")


def commit(folder: Path) -> str:
    """Make *folder* a repository with one commit.

    Returns:
        The revision, as the script shortens it.
    """
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    shown = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


# --- Use ----------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_fits_a_terminal(machine: Machine) -> None:
    outcome = machine.run("help")
    lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err) == (0, "")
    assert [name for name in COMMANDS if not any(line.startswith(f"  {name} ") for line in lines)] == []
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("--yes",),
        ("deploy", "now"),
        ("deploy", "--yes"),
        ("deploy", "--scale"),
        ("deploy", "--scale", "3"),
        ("deploy", "--profile", "ha", "--scale", "0"),
        ("deploy", "--profile", "ha", "--scale", "many"),
        ("deploy", "--wait", "soon"),
        ("deploy", "--image", "two words"),
        ("deploy", "--no-build=1"),
        ("stop", "--wait", "3"),
        ("clean", "all"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2_and_changes_nothing(machine: Machine, arguments: tuple[str, ...]) -> None:
    outcome = machine.run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "help" in outcome.err
    assert not [call for call in machine.calls if " up " in call or " build " in call]


def test_script_can_be_called_by_a_link_from_anywhere(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.folder / "deploy.sh")
    done = subprocess.run([tmp_path / "link", "build"], env=machine.environment(), cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_commands_of_the_guide_work_in_their_order(machine: Machine) -> None:
    guide = (ROOT / "docs" / "DOCKER_SETUP.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\./deploy\.sh ([^#\n]+)", guide, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        outcome = machine.run(*command.split())
        assert outcome.code == 0, f"{command}: {outcome.err}"


def test_no_colour_is_written_where_no_terminal_is(machine: Machine) -> None:
    assert "\033" not in machine.run("deploy").err


# --- Deploying ----------------------------------------------------------------------------------------------------


def test_first_deployment_builds_tries_and_starts(machine: Machine) -> None:
    outcome = machine.run("deploy")
    assert outcome.code == 0
    assert list(machine.containers().values()) == [("one", "running")]
    order = [" build ", " run -d --no-deps ", " up -d --no-build", " exec "]
    first = [next(index for index, call in enumerate(machine.calls) if words in call) for words in order]
    assert first == sorted(first)


def test_address_is_the_only_result(machine: Machine) -> None:
    machine.set("port", "8000")
    assert machine.run("deploy").out == "http://localhost:8000\n"


def test_second_deployment_of_the_same_restarts_and_tries_nothing(machine: Machine) -> None:
    before = machine.deployed().containers()
    assert machine.run("deploy").code == 0
    assert machine.containers() == before
    assert machine.called(" run -d") == []


def test_new_image_takes_the_place_of_the_old_one_which_is_kept(machine: Machine) -> None:
    machine.deployed().next_image("two")
    assert machine.run("deploy").code == 0
    assert list(machine.containers().values()) == [("two", "running")]
    assert machine.images["fast-embedding:latest"] == "two"
    assert machine.images["fast-embedding:previous"] == "one"


def test_changed_settings_are_tried_before_they_are_taken(machine: Machine) -> None:
    machine.deployed().set("hash", "h2")
    machine.set("rehearsed")
    assert machine.run("deploy").code == 0
    assert (machine.state / "rehearsed").read_text() == "fast-embedding:unknown\n"
    assert len(machine.containers()) == 1


def test_image_tells_of_what_it_was_built(machine: Machine) -> None:
    revision = commit(machine.folder)
    machine.run("build", variables={"PRELOAD_MODELS": "a/b c/d"})
    [build] = machine.called(" build ")
    for words in (
        f"REVISION={revision} ",
        f"--label org.opencontainers.image.revision={revision} ",
        "VERSION=9.8.7 ",
        "PRELOAD_MODELS=a/b c/d ",
        "--target production",
    ):
        assert words in build
    assert f"-t fast-embedding:{revision} " in build


def test_image_of_changed_files_says_so(machine: Machine) -> None:
    revision = commit(machine.folder)
    (machine.folder / "main.py").write_text("")
    machine.run("build")
    assert f"REVISION={revision}-dirty " in machine.called(" build ")[0]


def test_two_builds_of_one_commit_have_the_same_arguments(machine: Machine) -> None:
    commit(machine.folder)
    machine.run("build")
    machine.run("build")
    [first, second] = machine.called(" build ")
    assert first == second
    assert "CREATED=20" in first


def test_only_the_deployed_image_and_the_one_before_keep_their_tags(machine: Machine) -> None:
    machine.set("images/fast-embedding:mine", "one")
    revisions = []
    for number in range(3):
        (machine.folder / "main.py").write_text(f"VERSION = '{number}'\n")
        shutil.rmtree(machine.folder / ".git", ignore_errors=True)
        revisions.append(commit(machine.folder))
        machine.next_image(f"image{number}")
        machine.deployed()
    assert set(machine.images) == {
        "fast-embedding:latest",
        "fast-embedding:previous",
        "fast-embedding:mine",
        *(f"fast-embedding:{revision}" for revision in revisions[1:]),
    }


def test_image_that_is_here_can_be_deployed_without_building(machine: Machine) -> None:
    machine.run("build")
    machine.set("calls")
    assert machine.run("deploy", "--no-build").code == 0
    assert machine.called(" build ") == machine.called(" pull ") == []


def test_image_that_is_not_here_is_fetched(machine: Machine) -> None:
    outcome = machine.run("deploy", "--no-build", "--image=registry.example:5000/shop/embedding:1.2")
    assert outcome.code == 0
    assert machine.called(" pull registry.example:5000/shop/embedding:1.2")
    assert list(machine.containers().values()) == [("pulled", "running")]


def test_missing_env_file_is_told_and_none_is_made(machine: Machine) -> None:
    assert "defaults hold" in machine.run("deploy").err
    assert not (machine.folder / ".env").exists()


@pytest.mark.parametrize(
    "line",
    [
        "IMAGE=other:1",
        'IMAGE="other:1"',
        "export IMAGE='other:1' # why",
        "IMAGE = other:1  # why\r",
        "#IMAGE=x\nIMAGE=other:1",
    ],
)
def test_settings_come_from_the_env_file_as_compose_reads_it(machine: Machine, line: str) -> None:
    (machine.folder / ".env").write_text(f"PORT=1\n{line}\nOTHER=IMAGE=y\n")
    assert machine.run("deploy").code == 0
    assert "other:1" in machine.images


def test_name_without_effect_in_the_env_file_is_told(machine: Machine) -> None:
    for name in ("docker-compose.yml", "docker-compose.override.yml"):
        shutil.copy(ROOT / name, machine.folder)
    idle = ["MAX_BATCH_SISE", "HOST", "max_batch_size"]  # a typo, the image's own, and compose minds the case
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    settings = set(re.findall(r"^# ([A-Z_]+)=|^#   ([A-Z_]+) ", example, re.MULTILINE))
    known = {name for pair in settings for name in pair if name} - {"HOST", "MODELS_DIR", "HUB_CACHE_DIR"}
    assert len(known) > 40
    lines = [f"{name}=1" for name in ("COMPOSE_PARALLEL_LIMIT", "WAIT_SECONDS", *sorted(known))]
    (machine.folder / ".env").write_text("\n".join([*lines, *[f" export {name} = 1" for name in idle]]) + "\n")
    outcome = machine.run("deploy", variables=dict.fromkeys(known, ""))
    assert re.findall(r"^warn  \.env: (\S+) has no effect", outcome.err, re.MULTILINE) == idle
    (machine.folder / ".env").write_text("".join(f"# {name}=1\n" for name in idle))
    assert "has no effect" not in machine.run("deploy").err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "shop"), ({"COMPOSE_PROJECT_NAME": "mine"}, "mine")],
)
def test_project_is_the_one_that_compose_would_use(machine: Machine, variables: dict[str, str], expected: str) -> None:
    machine.run("deploy", variables=variables)
    assert machine.called(f"docker compose -p {expected} up")


# --- Deployments that fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["silent", "ends"])
def test_image_that_never_gets_healthy_gives_way_to_the_one_before(machine: Machine, broken: str) -> None:
    machine.deployed().next_image("two", broken=broken)
    machine.set("logs", "its last words")
    outcome = machine.run("deploy")
    assert (outcome.code, outcome.out) == (1, "")
    assert "its last words" in outcome.err
    assert "Rolled back" in outcome.err
    assert list(machine.containers().values()) == [("one", "running")]
    assert machine.images["fast-embedding:latest"] == "one"
    assert "fast-embedding:previous" not in machine.images


def test_image_before_the_last_is_still_known_after_a_way_back(machine: Machine) -> None:
    machine.deployed().next_image("two")
    machine.deployed().next_image("three", broken="ends")
    assert machine.run("deploy").code == 1
    assert machine.images["fast-embedding:latest"] == "two"
    assert machine.images["fast-embedding:previous"] == "one"


def test_first_deployment_that_fails_leaves_nothing_running(machine: Machine) -> None:
    machine.next_image("one", broken="ends")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "removed again" in outcome.err
    assert machine.containers() == {}
    assert "fast-embedding:latest" not in machine.images


def test_way_back_that_fails_is_told_loudly(machine: Machine) -> None:
    machine.deployed().next_image("two", broken="ends")
    machine.set("broken/one", "ends")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "THE ROLLBACK FAILED" in outcome.err


def test_same_image_that_fails_with_other_settings_has_no_way_back(machine: Machine) -> None:
    machine.deployed().set("hash", "h2")
    machine.set("broken/one", "silent")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "Undo that change" in outcome.err


@pytest.mark.parametrize(
    ("report", "told"),
    [
        pytest.param("Bad settings: PORT='x' is not allowed: input should be ...", "Correct it in .env", id="settings"),
        pytest.param("FAIL  values           MAX_BATCH_SIZE='many' is not allowed", "Correct it in .env", id="values"),
        pytest.param("FAIL  HUB_CACHE_DIR    cannot be written", "chown -R 10001", id="volume"),
        pytest.param("PermissionError: [Errno 13] Permission denied: '/data/hub'", "chown -R 10001", id="volume-bare"),
        pytest.param("FAIL  memory           100 MB available", "fewer or smaller models", id="memory"),
        pytest.param("no space left on device", "The disk is full", id="disk"),
    ],
)
def test_start_that_would_fail_stops_nothing_and_says_what_to_do(machine: Machine, report: str, told: str) -> None:
    before = machine.deployed().containers()
    machine.next_image("two")
    machine.fail("check", report)
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert report in outcome.err
    assert told in outcome.err
    assert "What runs was not touched." in outcome.err
    assert machine.containers() == before
    assert machine.images["fast-embedding:latest"] == "one"


def test_start_that_is_tried_for_too_long_is_cut_short(machine: Machine) -> None:
    machine.set("hang")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "--wait 600" in outcome.err
    assert machine.called(" rm -f -v shop-rehearsal")


def test_warnings_of_the_trial_start_are_shown(machine: Machine) -> None:
    machine.set("check", "ok    values\nwarn  callers   anyone may call\n")
    assert "warn  callers" in machine.run("deploy").err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param("Bind for 0.0.0.0:8000 failed: port is already allocated", "set PORT in .env", id="docker"),
        pytest.param("rootlessport listen tcp 0.0.0.0:80: bind: address already in use", "set PORT", id="podman"),
        pytest.param("all predefined address pools have been fully subnetted", "network prune", id="networks"),
    ],
)
def test_failure_of_compose_is_explained_and_the_old_image_returns(machine: Machine, words: str, told: str) -> None:
    machine.deployed().next_image("two")
    machine.fail("up-two", words)
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert told in outcome.err
    assert list(machine.containers().values()) == [("one", "running")]


def test_port_of_another_program_stops_nothing(machine: Machine) -> None:
    before = machine.deployed().containers()
    machine.next_image("two")
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = machine.run("deploy", variables={"PORT": str(other.getsockname()[1])})
    assert outcome.code == 1
    assert "in use by another program" in outcome.err
    assert machine.containers() == before
    assert machine.called(" build ") == []


def test_replicas_publish_no_port_of_their_own(machine: Machine) -> None:
    machine.deployed("--profile", "ha").run("deploy")
    assert all("-p shop -f docker-compose.yml --profile ha" in call for call in machine.called("compose -p"))


def test_compose_may_take_as_long_to_stop_as_requests_may_take(machine: Machine) -> None:
    machine.run("deploy", variables={"SHUTDOWN_TIMEOUT": "50"})
    assert (machine.state / "grace").read_text() == "60s"


def test_port_of_its_own_is_no_obstacle(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = str(ours.getsockname()[1])
        machine.deployed().set("port", port)
        assert machine.run("deploy", variables={"PORT": port}).code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param("write /x: no space left on device", "The disk is full", id="disk"),
        pytest.param(
            "ERROR: BuildKit is enabled but the buildx component is missing or broken.", "buildx", id="buildx"
        ),
        pytest.param("dial tcp: lookup registry-1.docker.io: no such host", "network", id="network"),
        pytest.param(
            f"No model is named 'a/c'.\nThe command '/bin/sh -c {PRELOADING}' returned a non-zero code: 2",
            "PRELOAD_MODELS=a/c",
            id="preload",
        ),
        pytest.param(
            f'Error: building at STEP "RUN {PRELOADING}": while running runtime: exit status 2',
            "PRELOAD_MODELS=a/c",
            id="preload-podman",
        ),
    ],
)
def test_build_that_fails_stops_nothing_and_says_what_to_do(machine: Machine, words: str, told: str) -> None:
    before = machine.deployed().containers()
    machine.fail("build", words)
    outcome = machine.run("deploy", variables={"PRELOAD_MODELS": "a/c"})
    assert outcome.code == 1
    assert words in outcome.err
    assert told in outcome.err
    assert machine.containers() == before


def test_image_that_cannot_be_fetched_is_told(machine: Machine) -> None:
    machine.fail("pull", "pull access denied for fast-embedding, repository does not exist")
    outcome = machine.run("deploy", "--no-build")
    assert outcome.code == 1
    assert "neither here nor to be fetched" in outcome.err
    assert "docker login" in outcome.err


def test_compose_file_that_is_not_understood_is_told(machine: Machine) -> None:
    machine.fail("config", "env file /x/.env not found: no such file or directory")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "cp .env.example .env" in outcome.err


def test_interrupted_deployment_goes_back(machine: Machine) -> None:
    machine.deployed().next_image("two", broken="silent")
    with subprocess.Popen(
        [machine.folder / "deploy.sh", "deploy", "--wait=60"],
        env=machine.environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stderr
        told = ""
        while "Waiting for health" not in told:
            told = script.stderr.readline()
            assert told
        script.terminate()
        told = script.stderr.read()
    assert "Rolled back" in told
    assert script.returncode == 143, told
    assert list(machine.containers().values()) == [("one", "running")]


def test_two_deployments_do_not_run_at_once(machine: Machine) -> None:
    folder = os.open(machine.folder, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    outcome = machine.run("deploy")
    os.close(folder)
    assert outcome.code == 1
    assert "Another deploy.sh is at work" in outcome.err
    assert machine.calls == []
    assert machine.run("deploy").code == 0


def test_lock_holds_where_no_flock_is(machine: Machine) -> None:
    (machine.programs / "flock").unlink(missing_ok=True)
    test_two_deployments_do_not_run_at_once(machine)


# --- Several replicas behind nginx --------------------------------------------------------------------------------


@pytest.fixture
def cluster(machine: Machine) -> Machine:
    """A machine on which three replicas run behind nginx."""
    return machine.deployed("--profile", "ha")


def test_three_replicas_start_behind_nginx(cluster: Machine) -> None:
    assert [image for image, _ in cluster.containers().values()] == ["one"] * 3
    assert len(cluster.containers("nginx")) == len(cluster.containers("redis")) == 1


def test_what_is_not_told_stays_as_it_runs(cluster: Machine) -> None:
    before = cluster.containers()
    assert cluster.run("deploy").code == 0
    assert cluster.containers() == before


def test_replicas_are_replaced_one_by_one(cluster: Machine) -> None:
    old = set(cluster.containers())
    cluster.next_image("two")
    assert cluster.run("deploy").code == 0
    assert [image for image, _ in cluster.containers().values()] == ["two"] * 3
    changes = [
        call.split()[1] if " stop " in call else "up" if " up " in call else "reload"
        for call in cluster.calls
        if " stop " in call or " --no-recreate " in call or call.endswith("-s reload")
    ]
    assert changes[:12] == ["up", "reload", "stop", "reload"] * 3
    assert [call.split()[-1] for call in cluster.called(" stop ")] == sorted(old)


def test_number_of_replicas_can_be_changed(cluster: Machine) -> None:
    before = cluster.containers()
    assert cluster.run("deploy", "--scale", "5").code == 0
    assert len(cluster.containers()) == 5
    assert set(before) < set(cluster.containers())


def test_replicas_keep_running_when_the_new_one_does_not_get_healthy(cluster: Machine) -> None:
    before = cluster.containers()
    cluster.next_image("two", broken="silent")
    outcome = cluster.run("deploy")
    assert outcome.code == 1
    assert "Rolled back" in outcome.err
    assert cluster.containers() == before
    assert cluster.called(" stop ") == []


def test_nginx_that_does_not_take_its_configuration_stops_nothing(cluster: Machine) -> None:
    before = cluster.containers()
    cluster.next_image("two")
    cluster.fail("nginx", "unknown directive in /etc/nginx/nginx.conf:3")
    outcome = cluster.run("deploy")
    assert outcome.code == 1
    assert "nginx.conf:3" in outcome.err
    assert cluster.containers() == before


def test_replicas_of_which_none_has_an_address_can_be_replaced(cluster: Machine) -> None:
    """All of them crash: to nginx their name is unknown, and a deployment is what helps."""
    cluster.next_image("two")
    cluster.fail("nginx", 'nginx: [emerg] host not found in upstream "fast-embedding:8000" in /etc/nginx/nginx.conf:70')
    assert cluster.run("deploy").code == 0
    assert {image for image, _ in cluster.containers().values()} == {"two"}


def test_nginx_gets_a_changed_configuration(cluster: Machine) -> None:
    (cluster.folder / "nginx.conf").write_text("# changed\n")
    assert "nginx.conf has changed" in cluster.run("deploy").err
    assert len(cluster.called(" restart ")) == 1


def test_nginx_that_does_not_start_is_a_failure(machine: Machine) -> None:
    machine.deployed()
    machine.set("broken/nginx", "ends")
    outcome = machine.run("deploy", "--profile=ha")
    assert outcome.code == 1
    assert "shop-nginx" in outcome.err


def test_one_container_can_take_the_place_of_the_replicas(cluster: Machine) -> None:
    assert cluster.run("deploy", "--profile", "none").code == 0
    assert len(cluster.containers()) == 1
    assert cluster.containers("nginx") == cluster.containers("redis") == {}


def test_restart_takes_one_replica_at_a_time(cluster: Machine) -> None:
    assert cluster.run("restart").code == 0
    steps = [call.split()[1] for call in cluster.calls if " restart " in call or "cli.health" in call]
    assert steps == ["restart", "exec"] * 3


# --- Going back, looking after it ---------------------------------------------------------------------------------


def test_rollback_takes_the_image_before_and_can_be_taken_back(machine: Machine) -> None:
    machine.deployed().next_image("two")
    machine.deployed()
    for expected in ("one", "two"):
        assert machine.run("rollback").code == 0
        assert list(machine.containers().values()) == [(expected, "running")]


def test_rollback_without_an_image_before_says_so(machine: Machine) -> None:
    outcome = machine.deployed().run("rollback")
    assert outcome.code == 1
    assert "There is no image before" in outcome.err


def test_status_tells_all_on_one_screen(machine: Machine) -> None:
    machine.deployed().set("port", "8000")
    outcome = machine.run("status")
    assert outcome.code == 0
    for words in ("shop", "revision unknown", "http://localhost:8000", "healthy", "a/b", "250MiB / 2GiB"):
        assert words in outcome.out
    assert len(outcome.out.splitlines()) < 15


def test_status_of_nothing_is_a_failure(machine: Machine) -> None:
    outcome = machine.run("status")
    assert outcome.code == 1
    assert "nothing" in outcome.out


@pytest.mark.parametrize("what", ["silent", "stopped"])
def test_status_of_an_unhealthy_service_is_a_failure(machine: Machine, what: str) -> None:
    machine.deployed()
    if what == "silent":
        machine.set("broken/one", "silent")
    else:
        machine.run("stop")
    assert machine.run("status").code == 1


def test_logs_go_to_compose(machine: Machine) -> None:
    assert machine.run("logs", "-f", "--since", "1m").out == "log lines\n"
    assert machine.called("logs -f --since 1m")


def test_stop_lets_accepted_requests_end_and_may_be_repeated(machine: Machine) -> None:
    machine.deployed()
    assert machine.run("stop", variables={"SHUTDOWN_TIMEOUT": "50"}).code == 0
    assert [call.split()[2:4] for call in machine.called(" stop ")] == [["-t", "60"]]
    assert list(machine.containers().values()) == [("one", "exited")]
    assert machine.run("stop").code == 0


def test_stopped_service_starts_again_with_deploy(machine: Machine) -> None:
    machine.deployed().run("stop")
    assert machine.run("deploy").code == 0
    assert list(machine.containers().values()) == [("one", "running")]


@pytest.mark.parametrize("what", ["all", "nginx"])
def test_stopped_replicas_start_again_as_many_as_they_were(cluster: Machine, what: str) -> None:
    if what == "all":
        cluster.run("stop")
    else:
        [proxy] = cluster.containers("nginx")
        (cluster.state / "containers" / proxy / "state").write_text("exited")
    assert cluster.run("deploy", "--no-build").code == 0
    assert [state for _, state in cluster.containers().values()] == ["running"] * 3
    assert [state for _, state in cluster.containers("nginx").values()] == ["running"]


def test_image_by_its_digest_is_refused_as_there_would_be_no_way_back(machine: Machine) -> None:
    outcome = machine.run("deploy", "--no-build", f"--image=registry.example/embedding@sha256:{'a' * 64}")
    assert outcome.code == 2
    assert "name a tag" in outcome.err


def test_restart_of_nothing_is_a_failure(machine: Machine) -> None:
    outcome = machine.run("restart")
    assert outcome.code == 1
    assert "deploy.sh deploy starts it" in outcome.err


# --- Cleaning -----------------------------------------------------------------------------------------------------


def test_clean_in_a_script_wants_yes(machine: Machine) -> None:
    outcome = machine.deployed().run("clean")
    assert outcome.code == 1
    assert "--yes" in outcome.err
    assert len(machine.containers()) == 1
    assert machine.called(" rm ") == machine.called(" rmi ") == []


def test_clean_tells_what_goes_and_leaves_what_is_not_its_own(machine: Machine, tmp_path: Path) -> None:
    machine.deployed(variables={"COMPOSE_PROJECT_NAME": "neighbour"})
    machine.deployed()
    for name in ("redis:7-alpine", "fast-embedding:mine"):
        machine.set(f"images/{name}", "one")
    outcome = machine.run("clean", "--yes")
    assert outcome.code == 0
    for words in ("container  shop-fast-embedding-2 (running)", "volume     shop_data", "network    shop_default"):
        assert words in outcome.err
    assert [path.name for path in (tmp_path / "state" / "volumes").iterdir()] == ["neighbour_data"]
    assert len(machine.containers()) == 1
    assert set(machine.images) == {"redis:7-alpine", "fast-embedding:mine"}


def test_clean_of_nothing_is_fine(machine: Machine) -> None:
    machine.deployed().run("clean", "--yes")
    outcome = machine.run("clean")
    assert outcome.code == 0
    assert "nothing" in outcome.err


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1), ("no", 1)])
def test_clean_asks_on_a_terminal(machine: Machine, answer: str, code: int) -> None:
    machine.deployed()
    ours, its = pty.openpty()
    with os.fdopen(ours, "w") as terminal, os.fdopen(its) as end:
        terminal.write(f"{answer}\n")
        terminal.flush()
        assert machine.run("clean", stdin=end.fileno()).code == code
    assert len(machine.containers()) == code


def test_clean_tells_what_it_could_not_remove(machine: Machine) -> None:
    machine.deployed()
    machine.fail("rm-shop_data", "volume is in use")
    outcome = machine.run("clean", "--yes")
    assert outcome.code == 1
    assert "Still there: volume shop_data" in outcome.err
    assert "volume is in use" in outcome.err
    assert machine.containers() == {}


# --- Engines and composes -----------------------------------------------------------------------------------------


def test_machine_without_an_engine_is_told_where_to_get_one(tmp_path: Path) -> None:
    outcome = Machine(tmp_path).run("deploy")
    assert outcome.code == 1
    assert "Neither docker nor podman" in outcome.err
    assert "https://docs.docker.com" in outcome.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "usermod -aG docker",
            id="permission",
        ),
        pytest.param(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "systemctl start", id="off"
        ),
        pytest.param("Cannot connect to Podman. Try `podman machine start`", "podman machine start", id="machine"),
    ],
)
def test_engine_that_does_not_answer_is_explained(machine: Machine, words: str, told: str) -> None:
    machine.fail("docker", words)
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert words in outcome.err
    assert told in outcome.err


def test_podman_stands_in_for_a_docker_that_does_not_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docker", "podman", "podman-compose")
    machine.fail("docker", "Cannot connect")
    assert machine.run("deploy").code == 0
    assert machine.called("podman compose -p shop up")


def test_podman_can_be_preferred_and_its_images_get_a_health_check(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docker", "podman")
    assert machine.run("deploy", variables={"CONTAINER_ENGINE": "podman"}).code == 0
    assert "--format docker" in machine.called("podman build")[0]


def test_engine_that_is_no_program_is_told(machine: Machine) -> None:
    assert "CONTAINER_ENGINE=dokcer" in machine.run("deploy", variables={"CONTAINER_ENGINE": "dokcer"}).err


def test_compose_v1_is_used_where_the_plugin_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docker", "docker-compose")
    machine.set("no-plugin")
    machine.set("compose-version", "docker-compose version 1.29.2, build unknown")
    assert machine.run("deploy").code == 0
    assert machine.called("docker-compose -p shop up -d --no-build")


def test_compose_that_knows_no_profiles_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docker", "docker-compose")
    machine.set("no-plugin")
    machine.set("compose-version", "docker-compose version 1.25.0, build unknown")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "too old" in outcome.err


def test_podman_compose_is_made_to_see_a_new_image(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "podman", "podman-compose")
    machine.set("no-plugin")
    machine.set("compose-version", "podman-compose version 1.0.6")
    machine.deployed().next_image("two")
    assert machine.run("deploy").code == 0
    assert machine.called("podman-compose -p shop up -d --no-build --scale fast-embedding=1 --force-recreate")


def test_missing_compose_is_told(machine: Machine) -> None:
    machine.set("no-plugin")
    outcome = machine.run("deploy")
    assert outcome.code == 1
    assert "no compose" in outcome.err


# --- Requests to what is deployed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_service() -> Iterator[str]:
    with running_server(API_KEYS=KEY) as server:
        yield server.url


def test_deployed_service_is_tried_with_a_key(machine: Machine, closed_service: str) -> None:
    outcome = machine.run("test", "--url", closed_service, variables={"API_KEY": KEY})
    assert outcome.code == 0, outcome.err
    assert [line.split()[:2] for line in outcome.out.splitlines()] == [
        ["ok", "/health"],
        ["ok", "/embed"],
        ["ok", "/embed/batch"],
    ]


def test_missing_key_is_told(machine: Machine, closed_service: str) -> None:
    outcome = machine.run("test", "--url", closed_service)
    assert outcome.code == 1
    assert "FAIL  /embed" in outcome.out
    assert "API_KEY=" in outcome.err


def test_service_that_does_not_answer_is_told(machine: Machine) -> None:
    outcome = machine.run("test", "--url", "http://127.0.0.1:1")
    assert outcome.code == 1
    assert "does not answer" in outcome.err
