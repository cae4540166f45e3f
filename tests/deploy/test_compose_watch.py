"""The address watcher in nginx's container (docker-compose.yml) reloads nginx once per change of the replicas."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.servers import ROOT

DEADLINE_S = 10
GETENT = """#!/bin/sh
# Like Alpine's getent: `hosts` prints the first address only, `ahosts` all of them, once per socket type. Docker's DNS
# returns them in a different order each time.
echo check >>checks
all=$(cat addresses)
turn=$(($(wc -l <checks) % $(echo "$all" | wc -l) + 1))
for address in $(echo "$all" | tail -n +$turn; echo "$all" | head -n $((turn - 1))); do
    if [ "$1" = hosts ]; then
        echo "$address       $2"
        exit
    fi
    for kind in STREAM DGRAM RAW; do echo "$address       $kind $2"; done
done
"""
NGINX = """#!/bin/sh
case "$*" in
*"-s reload") echo reload >>reloads ;;
*) echo started >>starts && exec tail -f /dev/null ;;
esac
"""


class Watch:
    """Runs the container's command with scripts in place of nginx and DNS; checks the addresses 50 times a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, script in (("getent", GETENT), ("nginx", NGINX), ("sleep", "#!/bin/sh\nexec /bin/sleep 0.02\n")):
            (folder / name).write_text(script, encoding="utf-8")
            (folder / name).chmod(0o755)
        self.replicas("10.0.0.2", "10.0.0.3", "10.0.0.4")
        service = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["nginx"]
        [command] = service["command"]
        self.process = subprocess.Popen(
            [*service["entrypoint"], command.replace("$$", "$")],
            cwd=folder,
            env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
            start_new_session=True,
        )

    def replicas(self, *addresses: str) -> None:
        new = self._folder / "new"
        new.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
        new.replace(self._folder / "addresses")

    def count(self, name: str) -> int:
        path = self._folder / name
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0

    def wait_until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < end, f"timed out after {DEADLINE_S} s"
            time.sleep(0.01)

    def wait_for_checks(self, count: int) -> None:
        """Wait until the watcher has checked *count* times more, and acted on the results."""
        before = self.count("checks")
        self.wait_until(lambda: self.count("checks") > before + count)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    started = Watch(tmp_path)
    try:
        started.wait_until(lambda: started.count("starts") == 1)
        yield started
    finally:
        os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait()


def test_order_of_addresses_does_not_cause_a_reload(watch: Watch) -> None:
    """A reload restarts all workers of nginx, so it must not happen every two seconds."""
    watch.wait_for_checks(12)
    assert watch.count("reloads") == 0


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"], id="added"),
        pytest.param(["10.0.0.2", "10.0.0.3", "10.0.0.9"], id="replaced"),
        pytest.param(["10.0.0.2"], id="removed"),
    ],
)
def test_change_of_the_replicas_reloads_nginx_once(addresses: list[str], watch: Watch) -> None:
    watch.replicas(*addresses)
    watch.wait_until(lambda: watch.count("reloads") > 0)
    watch.wait_for_checks(8)
    assert watch.count("reloads") == 1
