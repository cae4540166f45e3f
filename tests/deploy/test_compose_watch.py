"""What docker-compose.yml lets nginx's container do beside nginx: it hears of each replica that comes or goes, once."""

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
# As Alpine's, which nginx's image has: `hosts` tells the first address only, `ahosts` each of them, once per kind of
# socket. Docker answers in another order each time.
echo look >>looks
all=$(cat addresses)
turn=$(($(wc -l <looks) % $(echo "$all" | wc -l) + 1))
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
    """The container's command, with other programs in nginx's and the network's place; it looks 50 times a second."""

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
            assert time.monotonic() < end, f"not within {DEADLINE_S} s"
            time.sleep(0.01)

    def look(self, times: int) -> None:
        """Return when it has looked so often, and acted on what it saw."""
        before = self.count("looks")
        self.wait_until(lambda: self.count("looks") > before + times)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    started = Watch(tmp_path)
    try:
        started.wait_until(lambda: started.count("starts") == 1)
        yield started
    finally:
        os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait()


def test_order_of_addresses_is_no_change(watch: Watch) -> None:
    """Each reload begins all workers anew, and none must come every two seconds."""
    watch.look(12)
    assert watch.count("reloads") == 0


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"], id="one more"),
        pytest.param(["10.0.0.2", "10.0.0.3", "10.0.0.9"], id="another one"),
        pytest.param(["10.0.0.2"], id="two less"),
    ],
)
def test_each_replica_that_comes_or_goes_is_told_to_nginx_once(addresses: list[str], watch: Watch) -> None:
    watch.replicas(*addresses)
    watch.wait_until(lambda: watch.count("reloads") > 0)
    watch.look(8)
    assert watch.count("reloads") == 1
