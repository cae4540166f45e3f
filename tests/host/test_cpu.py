"""The class of the CPU."""

import platform
from pathlib import Path

import pytest

from host.cpu import cpu_class


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni avx_vnni\n", " avx512_vnni", id="VNNI"),
        pytest.param("processor: 0\nflags : avx2 fma\n\nprocessor: 1\nflags: avx2 avx512f\n", " avx2", id="first core"),
        pytest.param("Features\t: fp asimd asimddp\n", " asimddp", id="Arm"),
        pytest.param("flags: avx20 sse2\n", "", id="none of them"),
        pytest.param("\x00\xff", "", id="unreadable"),
        pytest.param(None, "", id="no such file, as on macOS"),
    ],
)
def test_class_is_the_architecture_and_the_best_instruction_set(
    content: str | None, expected: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content, encoding="latin-1")
    assert cpu_class(cpuinfo=tmp_path / "cpuinfo") == platform.machine() + expected
