"""Reloads of nginx, and replicas that come and go without one. Most tests need nginx 1.27.4 or later."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.support.name_server import NameServer, name_server
from tests.support.proxies import (
    CONFIGURATION,
    DNS,
    NEW,
    ProxyProcess,
    changed,
    configuration,
    newer_nginx,
    nginx,
    problem,
    running_proxy,
)
from tests.support.servers import ROOT, free_port
from tests.support.upstreams import Named, echoing, serving

pytestmark = [pytest.mark.nginx, pytest.mark.timeout(120)]

NAME = "fast-embedding"
START = ROOT / "deploy" / "compose" / "start-nginx.sh"
NEWER = {**DNS, **NEW, r"valid=2s": "valid=1s"}


# --- Reloads --------------------------------------------------------------------------------------------------------


@contextmanager
def kept_alive(proxy: ProxyProcess) -> Iterator[HTTPConnection]:
    """Open a connection that has got an answer, and that nginx keeps open."""
    with closing(HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)) as connection:
        assert post(connection) == (200, "keep-alive")
        assert connection.sock is not None
        yield connection


def post(connection: HTTPConnection) -> tuple[int, str | None]:
    """Send a request; return its status and the header Connection."""
    connection.request("POST", "/200", "{}")
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("Connection")


def reload(proxy: ProxyProcess) -> None:
    """Reload, and wait until the old workers have stopped accepting connections."""
    workers = proxy.count("start worker process ")
    proxy.reload()
    proxy.wait_until(lambda: proxy.count("gracefully shutting down") >= workers, "shutdown of the old workers")


def test_reload_keeps_idle_connections_for_one_more_request(tmp_path: Path) -> None:
    with echoing(tmp_path, NEW, command=newer_nginx()) as proxy, kept_alive(proxy) as connection:
        reload(proxy)
        assert post(connection) == (200, "close")
        assert connection.sock is None  # the next request opens a new one
        assert post(connection) == (200, "keep-alive")


def test_reload_of_nginx_1_22_closes_idle_connections(tmp_path: Path) -> None:
    """What docs/production/nginx.md says about a reload with this version. Newer versions do so, too, without #new."""
    with echoing(tmp_path) as proxy, kept_alive(proxy) as connection:
        proxy.reload()
        assert connection.sock is not None
        assert connection.sock.recv(1) == b""


def test_without_keep_alive_a_reload_finds_no_idle_connection(tmp_path: Path) -> None:
    """The remedy for older versions that docs/production/nginx.md names."""
    changes = {"server_tokens off;": "server_tokens off; keepalive_timeout 0;"}
    with (
        echoing(tmp_path, changes) as proxy,
        closing(HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)) as connection,
    ):
        assert post(connection) == (200, "close")
        reload(proxy)
        assert post(connection) == (200, "close")


@pytest.mark.slow
def test_drill_loses_no_request_with_a_newer_nginx() -> None:
    command = [sys.executable, "-m", "drills.reload", "--nginx", newer_nginx(), "--new", "--requests", "1000"]
    done = subprocess.run([*command, "--pause", "0.3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200: 1000" in done.stdout


# --- Replicas that come and go --------------------------------------------------------------------------------------


@pytest.fixture
def names() -> Iterator[NameServer]:
    newer_nginx()  # skips the test, before anything is started
    with name_server() as server:
        yield server


@contextmanager
def following(
    folder: Path, names: NameServer, port: int, more: Mapping[str, str] | None = None
) -> Iterator[ProxyProcess]:
    """Run an nginx that asks *names* for the replicas, which listen on *port*."""
    changes = {
        **NEWER,
        **(more or {}),
        f"{NAME}:8000": f"{NAME}:{port}",
        r"resolver 127\.0\.0\.11": f"resolver {names.address}",
    }
    with running_proxy(folder, [], changes, command=newer_nginx()) as proxy:
        yield proxy


def called(proxy: ProxyProcess, times: int = 20) -> set[str]:
    """Send requests; return the replicas that answered."""
    answers = [httpx.get(f"{proxy.url}/", timeout=30) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.text for answer in answers}


def test_replicas_that_come_and_go_need_no_reload(names: NameServer, tmp_path: Path) -> None:
    port = free_port()
    names.set(NAME, "127.0.0.2")
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(serving(Named, "127.0.0.2", port))
        proxy = stack.enter_context(following(tmp_path, names, port))
        names.wait_for_answers(1)
        assert called(proxy) == {"127.0.0.2"}

        stack.enter_context(serving(Named, "127.0.0.3", port))
        names.set(NAME, "127.0.0.2", "127.0.0.3")
        names.wait_for_answers(2)  # the second question follows the use of the first answer
        assert called(proxy) == {"127.0.0.2", "127.0.0.3"}

        first.close()
        assert called(proxy) == {"127.0.0.3"}  # also before nginx learns that the first one has gone
        names.set(NAME, "127.0.0.3")
        names.wait_for_answers(2)
        assert called(proxy) == {"127.0.0.3"}
        assert "reconfiguring" not in proxy.log


def test_request_to_a_vanished_replica_is_answered_by_those_that_come_in_its_place(
    names: NameServer, tmp_path: Path
) -> None:
    """By itself, nginx does not repeat a request if its list of replicas has changed during the failing attempt."""
    port = free_port()
    names.set(NAME, "127.0.0.4")
    with (
        silent("127.0.0.4", port),
        serving(Named, "127.0.0.2", port),
        following(tmp_path, names, port, {r"proxy_connect_timeout 1s": "proxy_connect_timeout 4s"}) as proxy,
        ThreadPoolExecutor(1) as pool,
    ):
        names.wait_for_answers(2)
        answer = pool.submit(httpx.get, proxy.url, timeout=30)
        names.wait_for_answers(1)
        names.set(NAME, "127.0.0.2")
        assert (answer.result().status_code, answer.result().text) == (200, "127.0.0.2"), proxy.log
    [logged] = proxy.requests
    assert logged["replica_status"].startswith("504")


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """Listen, but let every connection wait, as one to a host that is down does: the queue of the socket is full."""
    with socket.socket() as listener, ExitStack() as queued:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            waiting = queued.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex((host, port))
        yield


def test_nginx_starts_without_replicas_and_finds_them_when_they_come(names: NameServer, tmp_path: Path) -> None:
    port = free_port()
    with following(tmp_path, names, port) as proxy, serving(Named, "127.0.0.2", port):
        problem(httpx.get(f"{proxy.url}/health", timeout=30), 502, "bad-gateway")
        names.set(NAME, "127.0.0.2")
        names.wait_for_answers(2)
        assert called(proxy) == {"127.0.0.2"}


def test_reload_keeps_the_replicas_that_were_found(names: NameServer, tmp_path: Path) -> None:
    port = free_port()
    names.set(NAME, "127.0.0.2")
    with serving(Named, "127.0.0.2", port), following(tmp_path, names, port) as proxy:
        names.wait_for_answers(1)
        assert called(proxy) == {"127.0.0.2"}
        reload(proxy)
        assert called(proxy) == {"127.0.0.2"}


# --- The start in a container ---------------------------------------------------------------------------------------


class Container:
    """Runs start-nginx.sh with files of a test in place of the container's."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder = folder
        self._command = command
        self.resolv_conf("nameserver 127.0.0.11\noptions ndots:0\n")
        (folder / "if_inet6").touch()
        address = f"127.0.0.1:{free_port()}"
        (folder / "nginx.conf").write_text(configuration(CONFIGURATION, address, [], changes=KEEP_IPV6))

    def resolv_conf(self, text: str) -> None:
        (self._folder / "resolv.conf").write_text(text, encoding="utf-8")

    def without_ipv6(self) -> None:
        (self._folder / "if_inet6").unlink()

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the script; nginx gets *arguments*."""
        places = {
            "/etc/nginx/nginx.conf": "nginx.conf",
            "/run/nginx.conf": "made.conf",
            "/etc/resolv.conf": "resolv.conf",
            "/proc/net/if_inet6": "if_inet6",
            "exec nginx ": f"exec {self._command} -p . ",
        }
        script = START.read_text(encoding="utf-8")
        for before, after in places.items():
            assert before in script
            script = script.replace(before, after if " " in after else str(self._folder / after))
        words = ["/bin/sh", "-c", script, "start-nginx.sh", *arguments]
        return subprocess.run(words, cwd=self._folder, capture_output=True, text=True, check=False)

    @property
    def made(self) -> str:
        """The configuration that the script has made."""
        return (self._folder / "made.conf").read_text(encoding="utf-8")


KEEP_IPV6 = {r"listen \[::\]:8080;  # ipv6 # plain": f"listen [::1]:{free_port()};  # ipv6"}


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path, newer_nginx())


def test_container_starts_nginx_with_the_lines_for_newer_versions(container: Container) -> None:
    done = container.start("-t")
    assert done.returncode == 0, done.stderr
    assert "server fast-embedding:8000 max_fails=0 resolve;" in container.made
    assert "keepalive_min_timeout" in container.made
    assert not re.search(r"(?m)^ *#(new|dns) |# static$", container.made)


@pytest.mark.parametrize(
    ("lines", "server"),
    [
        pytest.param("nameserver 127.0.0.11\noptions ndots:0\n", "127.0.0.11", id="docker"),
        pytest.param("search dns.podman\nnameserver 10.89.0.1\n", "10.89.0.1", id="podman"),
        pytest.param("nameserver 10.89.0.1\nnameserver 10.255.255.53\n", "10.89.0.1", id="first-of-two"),
        pytest.param("nameserver fe80::1%eth0\nnameserver fd00::1\n", "[fd00::1]", id="ipv6"),
    ],
)
def test_container_uses_the_name_server_of_its_network(container: Container, lines: str, server: str) -> None:
    container.resolv_conf(lines)
    done = container.start("-t")
    assert done.returncode == 0, done.stderr
    assert f" resolver {server} valid=2s " in container.made


def test_container_without_ipv6_in_its_kernel_listens_on_ipv4_only(container: Container) -> None:
    container.without_ipv6()
    done = container.start("-t")
    assert done.returncode == 0, done.stderr
    assert "listen [" not in re.sub("(?m)^ *#.*", "", container.made)


def test_lines_for_newer_versions_are_comments_for_nginx_1_22(tmp_path: Path) -> None:
    text = configuration(CONFIGURATION, f"127.0.0.1:{free_port()}", ["127.0.0.1:9"], changes={})
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
    command = [nginx(), "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr", "-g", "pid nginx.pid;", "-t"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


# --- IPv6, and requests without a host ------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_nginx_answers_over_ipv6(tmp_path: Path) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    with echoing(tmp_path, {r"listen \[::\]:8080;": f"listen [::1]:{port};"}) as proxy:
        for url in (proxy.url, f"http://[::1]:{port}"):
            assert httpx.post(f"{url}/200", json={}, timeout=30).status_code == 200
        received = httpx.post(f"http://[::1]:{port}/200", json={}, timeout=30).json()
        assert received["x-forwarded-for"] == ["::1"]


def test_both_servers_listen_on_ipv4_and_ipv6_with_and_without_tls() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    enabled = changed(text, {r"(?m)^( *)#tls ": r"\1", r"(?m)^.*# plain\n": ""})
    for version in (text, enabled):
        listeners = re.findall(r"(?m)^ +listen ([^;]+);", version)
        ipv4 = [listener for listener in listeners if "[::]:" not in listener]
        assert [listener.replace("[::]:", "") for listener in listeners if "[::]:" in listener] == ipv4 != []
        removed = re.sub(r"(?m)^.*# ipv6.*\n", "", version)  # the command at the top of the file
        assert re.findall(r"(?m)^ +listen ([^;]+);", removed) == ipv4


def test_request_without_a_host_reaches_the_service_with_one(tmp_path: Path) -> None:
    """Health checks of load balancers send HTTP/1.0 without a host; the service rejects an empty one."""
    with echoing(tmp_path) as proxy:
        host, _, port = proxy.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), 30) as caller:
            caller.sendall(b"POST /200 HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
            answer = b"".join(iter(lambda: caller.recv(65536), b"")).decode()
    assert " 200 " in answer.splitlines()[0]
    assert '"host": ["localhost"]' in answer
