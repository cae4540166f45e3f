"""The class of the CPU, and its instruction sets."""

import platform
from pathlib import Path

import pytest

from host.cpu import cpu_class, instruction_sets


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(
            "flags : fpu sse sse4_2 ssse3 avx2 fma ibrs avx512_vnni nopl\n",
            ("avx2", "avx512_vnni", "fma", "sse", "sse4_2", "ssse3"),
            id="x86 without what the kernel adds",
        ),
        pytest.param("Features : fp asimd sve2 i8mm cpuid\n", ("asimd", "fp", "i8mm", "sve2"), id="Arm"),
    ],
)
def test_instruction_sets_are_those_of_vectors(content: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert instruction_sets(cpuinfo=tmp_path / "cpuinfo") == (platform.machine(), *expected)


def test_without_cpuinfo_macos_names_the_cpu_and_other_systems_do_not(tmp_path: Path) -> None:
    found = instruction_sets(cpuinfo=tmp_path / "none")
    assert (found is not None) == (platform.system() == "Darwin")


def test_machines_with_other_instruction_sets_differ(tmp_path: Path) -> None:
    found = set()
    for sets in ("avx2", "avx2 avx512f", "avx2 avx512f amx_int8", ""):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu sse {sets}\n")
        found.add(instruction_sets(cpuinfo=tmp_path / "cpuinfo"))
    assert len(found) == 4
