"""ALLOWED_HOSTS: which hosts match, and what the others get from a real server."""

import pytest

from tests.support.apps import settings_of
from tests.support.raw_http import Answer, connected, receive_answers, rejected, send
from tests.support.servers import running_server
from web.allowed_hosts import AllowedHosts

LISTED = "api.example.com,*.Example.ORG,10.0.0.0/8,192.168.1.5,[::1],fd00::/8,m\u00fcnchen.example"


@pytest.fixture(scope="module")
def hosts() -> AllowedHosts:
    return AllowedHosts(settings_of(ALLOWED_HOSTS=LISTED).allowed_hosts)


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "API.Example.com",
        "api.example.com.",
        "api.example.com:8000",
        "api.example.com.:443",
        "api.example.com:",
        " api.example.com ",
        "a.example.org",
        "a.b.example.org:80",
        "10.1.2.3",
        "10.1.2.3:8000",
        "192.168.1.5",
        "[::1]",
        "[0:0::1]:8000",
        "[::ffff:10.1.2.3]",
        "[fd12::1%25eth0]:1",
        "xn--mnchen-3ya.example",
    ],
)
def test_host_is_allowed_in_all_its_spellings(host: str, hosts: AllowedHosts) -> None:
    assert hosts.includes(host.encode())


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "example.com",
        "xapi.example.com",
        "api.example.com.evil.example",
        "api.example.com@evil.example",
        "evil.example#api.example.com",
        "api.example.com:80:80",
        "api.example.com:x",
        "api.example.com..",
        "api.example.com/",
        "api.example.com evil.example",
        "example.org",
        ".example.org",
        "xexample.org",
        "11.0.0.1",
        "10.1",
        "192.168.1.50",
        "::1",
        "[::1",
        "[::2]",
        "[10.0.0.1]",
        "[api.example.com]",
        "m\u00fcnchen.example",
        "\x00",
    ],
)
def test_host_is_not_allowed(host: str, hosts: AllowedHosts) -> None:
    assert not hosts.includes(host.encode())


def test_every_host_that_a_request_names_must_be_allowed(hosts: AllowedHosts) -> None:
    good, evil = b"api.example.com", b"evil.example"
    assert hosts.include_all(None, [(b"host", good)])
    assert hosts.include_all(good, [])
    assert not hosts.include_all(evil, [(b"host", good)])
    assert not hosts.include_all(good, [(b"host", evil)])
    assert not hosts.include_all(None, [(b"host", good), (b"host", evil)])
    assert not hosts.include_all(None, [(b"x-forwarded-host", good)])


def test_early_rejections_are_for_allowed_hosts_only(hosts: AllowedHosts) -> None:
    """Otherwise the answer to another host would depend on the load."""
    asked: list[str] = []
    reject = hosts.reject_early(lambda path, *_: asked.append(path))
    assert reject("/embed", None, [(b"host", b"evil.example")]) is None
    assert asked == []
    reject("/embed", None, [(b"host", b"api.example.com")])
    assert asked == ["/embed"]


@pytest.mark.timeout(60)  # starts a process
def test_server_rejects_other_hosts_except_on_health_routes() -> None:
    with running_server(ALLOWED_HOSTS="api.example.com,127.0.0.1") as server:
        port = int(server.url.rpartition(":")[2])

        def ask(*lines: str) -> Answer:
            with connected(server) as connection:
                send(connection, "\r\n".join([*lines, "Connection: close", "", ""]).encode())
                [answer] = receive_answers(connection)
            return answer

        def status(*lines: str) -> int:
            return ask(*lines)[0]

        evil, good = "Host: evil.example", "Host: api.example.com:8000"
        assert status("GET /models HTTP/1.1", good) == 200
        assert status("GET /models HTTP/1.1", f"Host: 127.0.0.1:{port}") == 200
        assert status("GET /models HTTP/1.1", evil) == 421
        assert status("GET /nowhere HTTP/1.1", evil) == 421
        assert status("GET /metrics HTTP/1.1", evil) == 421
        assert status("POST /embed HTTP/1.1", evil, "Content-Length: 0") == 421
        assert (
            status("OPTIONS /embed HTTP/1.1", evil, "Origin: https://a", "Access-Control-Request-Method: POST") == 421
        )
        assert status("GET http://evil.example/models HTTP/1.1", good) == 421
        assert status("GET http://api.example.com/models HTTP/1.1", good) == 200
        assert status("GET http://api.example.com/models HTTP/1.1", evil) == 421
        assert status("GET /models HTTP/1.0") == 421
        for path in ("/health", "/health/live", "/health/ready", "/health/live/"):
            assert status(f"GET {path} HTTP/1.1", evil) == 200
            assert status(f"GET {path} HTTP/1.0") == 200
        problem = rejected(ask("GET /models HTTP/1.1", evil), 421, "misdirected-request")
        assert "evil" not in problem["detail"]
