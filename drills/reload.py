"""Count the requests that clients lose while nginx reloads its configuration once a second.

Run `python -m drills.reload`. It starts the service, nginx in front of it with this repository's nginx.conf, and
clients that send one short text after another on connections that they keep open. A request is lost if its connection
ends without a complete answer; the client does not send it again. Exit code 1: an answer was not 200, or a request was
lost although `--new` or `--no-keep-alive` prevents that.
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.machine import ROOT, describe_run
from benchmarks.processes import BenchError, end_children_on_sigterm, end_tree, free_port, healthy_server

MAX_START_S = 10.0
PATIENCE_S = 60.0
HEADERS = {"Content-Type": "application/json"}
TEMPORARY = ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
LOST = "lost"


def main() -> int:
    end_children_on_sigterm()
    options = _options()
    try:
        with (
            healthy_server(lanes=2, log_level="WARNING") as server,
            running_nginx(options, server.port) as (nginx, port),
        ):
            drill = Drill(port, nginx, requests=options.requests, pause_s=options.pause)
            seconds = drill.run(clients=options.clients)
    except BenchError as error:
        print(f"drills.reload: {error}", file=sys.stderr)
        return 1
    version = subprocess.run([options.nginx, "-v"], capture_output=True, text=True, check=True).stderr.strip()
    print(describe_run(f"python -m drills.reload {' '.join(sys.argv[1:])}"))
    results = ", ".join(f"{result}: {count}" for result, count in drill.results.most_common())
    print(f"{version}; {options.clients} clients, {drill.reloads} reloads in {seconds:.0f} s; {results}")
    allowed = {"200"} if options.new or options.no_keep_alive else {"200", LOST}
    return 0 if set(drill.results) <= allowed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nginx", default="nginx", help="command; default: nginx")
    parser.add_argument("--new", action="store_true", help="enable the lines marked #new, for nginx 1.27.4 and later")
    parser.add_argument("--no-keep-alive", action="store_true", help="close each connection after its answer")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two reloads; 0: no reload")
    return parser.parse_args()


@contextmanager
def running_nginx(options: argparse.Namespace, replica_port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start nginx in front of the service; yield its process and its port as soon as requests are answered."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        text = _configuration(port, replica_port, is_new=options.new, keeps_alive=not options.no_keep_alive)
        Path(folder, "nginx.conf").write_text(text, encoding="utf-8")
        # Started by root, nginx switches to a user that may not enter the folder.
        main_lines = "daemon off; pid nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
        command = [options.nginx, "-p", folder, "-c", "nginx.conf", "-e", "stderr", "-g", main_lines]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            _wait_until_it_answers(port, process)
            yield process, port
        finally:
            end_tree(process, [])


def _configuration(port: int, replica_port: int, *, is_new: bool, keeps_alive: bool) -> str:
    """Return nginx.conf with these addresses, and temporary files in its own folder."""
    temporary = "".join(f"    {name}_temp_path {name};\n" for name in TEMPORARY)
    changes = {
        r"(?m)^http \{\n": f"http {{\n{temporary}",
        r"server fast-embedding:8000 ": f"server 127.0.0.1:{replica_port} ",
        r"(?m)^( +)listen 8080;": rf"\1listen 127.0.0.1:{port};",
        r"(?m)^ +listen \[::\]:8080;.*\n": "",
    }
    if is_new:
        changes[r"(?m)^( *)#new "] = r"\1"
    if not keeps_alive:
        changes["server_tokens off;"] = "server_tokens off; keepalive_timeout 0;"
    text = (ROOT / "nginx.conf").read_text(encoding="utf-8")
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text)
        if not count:
            raise BenchError(f"nginx.conf has nothing like {pattern}")
    return text


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + MAX_START_S
    while True:
        with closing(_connection(port)) as connection:
            if _send(connection, "Does nginx answer?") == "200":
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError("nginx does not start. Test its configuration with: nginx -t")
        time.sleep(0.05)


def _connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)


def _send(connection: http.client.HTTPConnection, text: str) -> str:
    """Send a request and return the status of its answer, or LOST. The next call opens a lost connection again."""
    try:
        connection.request("POST", "/embed", json.dumps({"text": text}), HEADERS)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return LOST
    return str(response.status)


class Drill:
    """Clients that send a number of requests together, while nginx reloads.

    Attributes:
        results: the number of requests by status of the answer, or LOST.
        reloads: the number of reloads.
    """

    def __init__(self, port: int, nginx: subprocess.Popen[bytes], *, requests: int, pause_s: float) -> None:
        self.results: Counter[str] = Counter()
        self.reloads = 0
        self._port = port
        self._nginx = nginx
        self._pause_s = pause_s
        self._left = requests
        self._lock = threading.Lock()

    def run(self, *, clients: int) -> float:
        """Send all requests, and return how many seconds that took."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._call, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while self._left > 0:
            time.sleep(self._pause_s or 1.0)
            if self._pause_s:
                self._nginx.send_signal(signal.SIGHUP)
                self.reloads += 1
        for thread in threads:
            thread.join()
        return time.monotonic() - began

    def _call(self) -> None:
        with closing(_connection(self._port)) as connection:
            while number := self._take_number():
                result = _send(connection, f"Hello, world number {number}!")
                with self._lock:
                    self.results[result] += 1

    def _take_number(self) -> int:
        """Return the number of the next request, which no other one has; 0: all have been sent."""
        with self._lock:
            number = self._left
            self._left -= number > 0
            return number


if __name__ == "__main__":
    sys.exit(main())
