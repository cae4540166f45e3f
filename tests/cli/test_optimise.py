"""`python main.py optimise`, and what `check` says about optimised copies."""

from pathlib import Path

import pytest

from engine.onnx_sessions import COPY_WEIGHTS
from tests.support.commands import RunCommand
from tests.support.optimised import WIDE, Place, write_wide_model
from tests.support.tiny import TinyModel


def copy_line(output: str) -> str:
    """Return what `check` says about the copy, with single spaces."""
    return next(" ".join(line.split()) for line in output.splitlines() if line.split()[1:2] == ["copy"])


@pytest.mark.processes
@pytest.mark.slow  # six commands, three of which start a process
def test_optimise_writes_copies_that_check_reports(run_command: RunCommand, tmp_path: Path) -> None:
    write_wide_model(tmp_path / "models")
    TinyModel("acme/tiny").write(tmp_path / "models")
    place = Place(tmp_path / "copies", tmp_path / "models")
    settings = {
        "MODELS_DIR": str(place.models),
        "OPTIMISED_MODELS_DIR": str(place.folder),
        "OPTIMISED_MODELS_MAX_SIZE": "1GB",
        "REQUIRED_MODELS": WIDE,
    }
    assert copy_line(run_command("check", **settings).out) == "ok copy not used: none has been written yet"
    first = run_command("optimise", "--all-required", "acme/tiny", **settings)
    assert (first.code, first.out) == (0, f"{WIDE}: copy written, 3.4 MB\n")
    assert "acme/tiny: no copy: the model is too small to need one" in first.err
    assert run_command("optimise", WIDE, **settings).out == f"{WIDE}: has a copy, 3.4 MB\n"
    assert copy_line(run_command("check", **settings).out) == "ok copy used, 3.4 MB"
    weights = place.copy / COPY_WEIGHTS
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    weights.chmod(0o600)
    damaged = "warn copy not used: its files are not those that were written"
    assert copy_line(run_command("check", **settings).out) == damaged
    refused = run_command("optimise", WIDE, **{**settings, "OPTIMISED_MODELS_MAX_SIZE": "0"})
    assert (refused.code, refused.err) == (1, f"{WIDE}: no copy: OPTIMISED_MODELS_MAX_SIZE is 0\n")


def test_optimise_needs_a_model(run_command: RunCommand) -> None:
    outcome = run_command("optimise")
    assert (outcome.code, outcome.err) == (2, "Name at least one model, or use --all-required.\n")
