"""Times the start of the server up to its first answer, and that of a process that loads the model with FastEmbed.

Run `python benchmarks/startup.py` for this part of `bench.py` alone. With a path, it measures that checkout in turns.
Each start is timed in seconds and in seconds of CPU: on a machine that does something else as well, only the latter
can be compared.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import ROOT, describe_run
from benchmarks.processes import (
    MAX_START_S,
    WITHOUT_RESULT_CACHE,
    BenchError,
    Server,
    end_children_on_sigterm,
    spawned,
    spawned_server,
)
from benchmarks.tables import markdown
from benchmarks.workloads import MODEL
from host.cores import usable_cores

FIRST_TEXT = "How long until the first answer?"
LOAD = f"import sys; from fastembed import TextEmbedding; TextEmbedding({MODEL!r}, specific_model_path=sys.argv[1])"
IMPORT_SERVICE = (
    "from serving.process_start import prepare_process; prepare_process(); import sys; sys.argv[1:] = []; import main"
)
COPY_S = 20.0
"""Time for a server to write the copy."""
BYTECODE = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    **WITHOUT_RESULT_CACHE,
}
"""The environment of what is measured: the first start stores the bytecode that the images contain, too."""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds of one start each, by the clock and of CPU.

    Attributes:
        server_s: `python main.py` to its first answer.
        load_s: a process that imports FastEmbed, loads the model and ends.
        import_s: a process that imports FastEmbed and ends.
        service_import_s: a process that imports and builds the service and ends.
    """

    server_s: float
    load_s: float
    import_s: float
    service_import_s: float
    server_cpu_s: float
    load_cpu_s: float
    import_cpu_s: float
    service_import_cpu_s: float


def measure_start(folder: Path, *, lanes: int, checkout: Path = ROOT) -> tuple[Start, list[float]]:
    """Measure each once; return the vector of the server's first answer, too."""
    imported = _time_script("import fastembed", folder, checkout)
    loaded = _time_script(LOAD, folder, checkout)
    service = _time_script(IMPORT_SERVICE, folder, checkout)
    began_at = time.perf_counter()
    with spawned_server({"PYTHONDONTWRITEBYTECODE": ""}, lanes=lanes, checkout=checkout) as server:
        vector = first_vector(server)
        served = time.perf_counter() - began_at, _cpu_s_of(server.process.pid)
    return Start(
        *(times[0] for times in (served, loaded, imported, service)),
        *(times[1] for times in (served, loaded, imported, service)),
    ), vector


def _time_script(script: str, folder: Path, checkout: Path) -> tuple[float, float]:
    """Return the seconds and the seconds of CPU of a process that runs *script*."""
    began_at, began_cpu_s = time.perf_counter(), _cpu_s_of_children()
    with spawned(["-c", script, str(folder)], cwd=checkout, env=BYTECODE, stdin=subprocess.DEVNULL) as process:
        code = process.wait(MAX_START_S)
        took_s = time.perf_counter() - began_at
    if code:
        raise BenchError("FastEmbed cannot load the bundled model. Its output is above.")
    return took_s, _cpu_s_of_children() - began_cpu_s


def _cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_s_of(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_vector(server: Server) -> list[float]:
    """Ask for a vector every 5 ms until there is one."""
    vector: list[float] = []

    def has_answered() -> bool:
        answer = server.post("/embed", {"text": FIRST_TEXT})
        vector[:] = answer.json["embedding"] if answer.status == 200 else []
        return bool(vector)

    server.wait_for(has_answered, pause_s=0.005)
    return vector


def start_table(starts: list[Start]) -> str:
    """Return a table of the medians, by the clock and of CPU."""
    names = (
        "`python main.py` to the first correct answer",
        "a process that imports FastEmbed and loads the model",
        "a process that imports FastEmbed",
        "a process that imports and builds the service",
    )
    middles = [median(values) for values in zip(*map(astuple, starts), strict=True)]
    half = len(middles) // 2
    lines = [
        [name, f"{took_s:.2f}", f"{cpu_s:.2f}"]
        for name, took_s, cpu_s in zip(names, middles[:half], middles[half:], strict=True)
    ]
    return markdown(["", "s", "s of CPU"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="startup.py", description="Time the start of the service.")
    parser.add_argument("checkouts", nargs="*", type=Path, help="other checkouts, measured in turns with this one")
    parser.add_argument("--starts", type=int, default=5, help="of each (default: %(default)s)")
    options = parser.parse_args()
    end_children_on_sigterm()
    print(describe_run(" ".join(["python benchmarks/startup.py", *sys.argv[1:]])), end="\n\n")
    checkouts, lanes = [ROOT, *options.checkouts], usable_cores()
    starts: dict[Path, list[Start]] = {checkout: [] for checkout in checkouts}
    try:
        for checkout in checkouts:
            _write_copy(checkout, lanes=lanes)
        for number in range(options.starts + 1):
            for checkout in checkouts:
                start, _ = measure_start(checkout / "models" / MODEL.rpartition("/")[2], lanes=lanes, checkout=checkout)
                if number:  # the first stores bytecode, and reads files into memory
                    starts[checkout].append(start)
    except BenchError as error:
        sys.exit(f"startup.py: {error}")
    for checkout, measured in starts.items():
        print(f"{checkout.name}, {options.starts} starts:\n\n{start_table(measured)}\n")
        by_clock = _spread([start.server_s / start.load_s for start in measured])
        of_cpu = _spread([start.server_cpu_s / start.load_cpu_s for start in measured])
        print(f"start / importing FastEmbed and loading the model: {by_clock} by the clock, {of_cpu} of CPU\n")


def _write_copy(checkout: Path, *, lanes: int) -> None:
    """Let a server write the optimised copy of the model, if it has such copies and has none yet."""
    events = {"optimised_copy_adopted", "optimised_copy_failed"}
    with spawned_server({"PYTHONDONTWRITEBYTECODE": ""}, lanes=lanes, checkout=checkout) as server:
        first_vector(server)
        ends_s = time.monotonic() + COPY_S
        server.wait_for(
            lambda: time.monotonic() > ends_s or any(event["event"] in events for event in server.events_after(0))
        )


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
