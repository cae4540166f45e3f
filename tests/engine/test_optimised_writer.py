"""The process that writes an optimised copy: what it inherits, and that it ends with the one that has started it."""

import hashlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from engine.optimised_writer import CopyFailedError, run_writer
from tests.support.optimised import write_wide_model
from tests.support.processes import END_S, killed_at_the_end, open_pidfd
from tests.support.servers import ROOT

SCRIPT = """
import sys
from pathlib import Path
from engine.optimised_writer import run_writer
source, folder = map(Path, sys.argv[1:])
run_writer(source, ids=[], folder=folder, started=lambda process: print(process.pid, flush=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about a process")
def test_the_writer_gets_no_secret_gives_way_and_ends_with_the_service(tmp_path: Path) -> None:
    os.mkfifo(source := tmp_path / "model.onnx")  # whoever reads it waits
    service = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "API_KEYS": "a-secret", "AWS_SECRET_ACCESS_KEY": "another-secret"},
        stdout=subprocess.PIPE,
    )
    with killed_at_the_end(service):
        assert service.stdout
        writer = int(service.stdout.readline())
        with open_pidfd(writer) as ended, source.open("wb"):  # opened once the writer opens it, too
            assert b"secret" not in Path(f"/proc/{writer}/environ").read_bytes()
            assert Path(f"/proc/{writer}/oom_score_adj").read_text().strip() == "1000"
            assert os.getpriority(os.PRIO_PROCESS, writer) > os.getpriority(os.PRIO_PROCESS, 0)
            assert not select.select([ended], [], [], 0)[0]
            service.kill()
            assert select.select([ended], [], [], END_S)[0]


def test_the_process_prints_what_it_has_written(tmp_path: Path) -> None:
    source = write_wide_model(tmp_path) / "model.onnx"
    (folder := tmp_path / "copy").mkdir()
    command = [sys.executable, "-m", "engine.optimised_writer", str(source), str(folder), "[[1, 2, 3], [4]]"]
    pipe = subprocess.PIPE
    with killed_at_the_end(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe)) as process:
        assert process.stdout
        printed = json.loads(process.stdout.read())
        assert process.wait(END_S) == 0  # its input is still open: it would end at once otherwise
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(written) == 2
    assert printed == {
        name: {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in written.items()
    }


def test_a_writer_that_cannot_read_the_model_says_so_in_one_sentence(tmp_path: Path) -> None:
    (source := tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(CopyFailedError) as failure:
        run_writer(source, ids=[], folder=tmp_path, started=lambda _: None)
    assert "\n" not in str(failure.value)
