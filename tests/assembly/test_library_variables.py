"""Environment variables of libraries: those that cannot be used are reported, and none stops the start."""

import os
from pathlib import Path

import pytest

import env_file
from assembly.library_variables import describe, unusable_variables
from tests.support.servers import running_server

NEEDED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_HOME", "HF_ENDPOINT", "NO_PROXY")
ADDRESS = "use an address like http://proxy.example:3128"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own variables."""
    monkeypatch.setattr(env_file, "_dropped", {})
    for name in list(os.environ):
        if name in NEEDED or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        pytest.param("HF_HUB_ETAG_TIMEOUT", "", "use a whole number of seconds; its default is used", id="empty"),
        pytest.param("HF_HUB_ETAG_TIMEOUT", "10s", "use a whole number of seconds", id="unit"),
        pytest.param("HF_HUB_DOWNLOAD_TIMEOUT", "-1", "use a whole number of seconds", id="negative"),
        pytest.param("HF_HUB_DOWNLOAD_TIMEOUT", "1.5", "use a whole number of seconds", id="fraction"),
        pytest.param("HF_ENDPOINT", "", "it is empty, so its default is used", id="no hub"),
        pytest.param("HF_ENDPOINT", "hub.example", "use an address like https://huggingface.co", id="hub by its name"),
        pytest.param("HF_ENDPOINT", "https://[", "use an address like https://huggingface.co", id="malformed hub"),
        pytest.param("HF_HOME", "", "it is empty, so its default is used", id="no folder"),
        pytest.param("HF_HOME", f"{__file__}/x", "downloads need it, but ", id="folder below a file"),
        pytest.param("HF_TOKEN", "hush\u00e4", "it has characters that no token has", id="token"),
        pytest.param("HF_HUB_OFFLINE", "maybe", "use 1 or 0; it counts as 0", id="switch"),
        pytest.param("HTTPS_PROXY", "foo", f"it has no port; {ADDRESS}", id="proxy without a port"),
        pytest.param("HTTPS_PROXY", "http://me:hush@foo:abc", ADDRESS, id="port in letters"),
        pytest.param("http_proxy", "http://:3128", ADDRESS, id="proxy without a host"),
        pytest.param("ALL_PROXY", "ftp://foo:21", ADDRESS, id="unknown scheme"),
        pytest.param("all_proxy", "socks5://me:hush@foo:1080", "need the package socksio", id="SOCKS"),
        pytest.param("NO_PROXY", "localhost,[::1]", "it has a malformed entry", id="exception"),
        pytest.param("SSL_CERT_FILE", "/none", "the file cannot be read (No such file or directory)", id="no file"),
        pytest.param("SSL_CERT_FILE", __file__, "the file contains no certificate in PEM form", id="no certificate"),
        pytest.param("SSL_CERT_DIR", "/none", "there is no such folder", id="no folder of certificates"),
        pytest.param("REQUESTS_CA_BUNDLE", "/none", "the service does not read it; set SSL_CERT_FILE", id="requests"),
        pytest.param("CURL_CA_BUNDLE", __file__, "the service does not read it; set SSL_CERT_FILE", id="curl"),
        pytest.param("OMP_NUM_THREADS", "abc", "it is not a whole number, so it has no effect", id="threads"),
        pytest.param("WEB_CONCURRENCY", "auto", "it is not a whole number, so it has no effect", id="workers"),
        pytest.param("LOGURU_DIAGNOSE", "maybe", "it has no effect", id="library of logs"),
        pytest.param("TQDM_MININTERVAL", "abc", "it has no effect", id="library of progress bars"),
    ],
)
def test_variable_that_cannot_be_used_is_described_in_one_line(
    name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    [found] = unusable_variables()
    line = describe(*found)
    assert line.startswith(f"{name} in the environment cannot be used: ")
    assert reason in line
    assert "\n" not in line
    assert "hush" not in line


def test_usable_and_empty_variables_are_not_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usable = {
        "HF_HUB_ETAG_TIMEOUT": "10",
        "HF_ENDPOINT": "https://hub.example/mirror",
        "HF_HOME": str(tmp_path / "new"),
        "HF_TOKEN": "hf_0123",
        "HF_HUB_OFFLINE": "on",
        "HTTPS_PROXY": "http://me:password@10.0.0.1:3128",
        "http_proxy": "proxy.example:3128",
        "ALL_PROXY": "",
        "NO_PROXY": "localhost,127.0.0.1,::1,.example.com,10.0.0.0/8",
        "SSL_CERT_DIR": str(tmp_path),
        "REQUESTS_CA_BUNDLE": "/none",
        "OMP_NUM_THREADS": "4,2",
    }
    for name, value in usable.items():
        monkeypatch.setenv(name, value)
    assert unusable_variables() == []


def test_proxy_whose_name_cannot_be_resolved_is_reported_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert unusable_variables() == []
    assert unusable_variables(resolve=True) == [("HTTPS_PROXY", "the name of its host cannot be resolved")]


@pytest.mark.timeout(60)  # starts a process
def test_no_variable_of_a_library_stops_the_start() -> None:
    """Each of these was a traceback, from a library that is imported or called at the start."""
    bad = {
        "HF_HUB_ETAG_TIMEOUT": "",
        "HF_HUB_DOWNLOAD_TIMEOUT": "10s",
        "LOGURU_DIAGNOSE": "maybe",
        "TQDM_MININTERVAL": "abc",
        "WEB_CONCURRENCY": "abc",
        "SSL_CERT_FILE": "/none",
    }
    with running_server(**bad) as server:
        server.wait_for("variable_unusable", times=len(bad))
        found = [event["name"] for event in server.events if event["event"] == "variable_unusable"]
    assert set(bad) <= set(found)
