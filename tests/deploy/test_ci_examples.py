"""docs/ci/: the pipelines cannot run here, but they match their schemas, and their shell passes shellcheck."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.schemas import complaints
from tests.support.servers import ROOT

CI = ROOT / "docs" / "ci"
GITHUB, GITLAB, JENKINS, IMAGE_SH = (
    CI / name for name in ("github-actions.yml", "gitlab-ci.yml", "Jenkinsfile", "image.sh")
)
STUB = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1 $2" in
"run --detach" | "create "*) echo container-1 ;;
"run --rm") case "$3" in --interactive) cat >/dev/null ;; esac ;;
"inspect --format") echo 0 ;;
"save --output") touch "$3" ;;
esac
case "$1" in "$FAILING") exit 1 ;; esac
"""


def workflow() -> Any:
    return yaml.safe_load(GITHUB.read_text(encoding="utf-8"))


def gitlab_jobs() -> dict[str, Any]:
    pipeline = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))
    return {name: job for name, job in pipeline.items() if isinstance(job, dict) and "script" in job}


def scripts() -> Iterator[tuple[str, str]]:
    """Yield each shell script of the pipelines, with its place."""
    for name, job in workflow()["jobs"].items():
        for number, step in enumerate(job["steps"]):
            if "run" in step:
                yield f"github-{name}-{number}", re.sub(r"\$\{\{.*?\}\}", "value", step["run"])
    for name, job in gitlab_jobs().items():
        yield f"gitlab-{name}", "\n".join([*job.get("before_script", []), *job["script"]])
    for number, script in enumerate(re.findall(r"\bsh '(.+)'$", JENKINS.read_text("utf-8"), re.MULTILINE)):
        yield f"jenkins-{number}", script


SCRIPTS = [pytest.param(script, id=place) for place, script in scripts()]


@pytest.mark.parametrize(("kind", "file"), [("github-workflows", GITHUB), ("gitlab-ci", GITLAB)])
def test_pipeline_matches_its_schema(kind: str, file: Path) -> None:
    assert complaints(kind, file) == ""


def test_actions_are_pinned_and_have_the_least_permissions() -> None:
    used = [step["uses"] for job in workflow()["jobs"].values() for step in job["steps"] if "uses" in step]
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", action)] == []
    assert workflow()["permissions"] == {"contents": "read"}
    writing = {name: job["permissions"] for name, job in workflow()["jobs"].items() if "permissions" in job}
    assert {name: [right for right, kind in given.items() if kind == "write"] for name, given in writing.items()} == {
        "image": ["packages"],
        "manifest": ["packages"],
    }


def test_image_name_is_lowercase(tmp_path: Path) -> None:
    """Registries accept nothing else, but GitHub's `github.repository` keeps the case of the owner's name."""
    [named] = [step["run"] for step in workflow()["jobs"]["image"]["steps"] if "IMAGE=" in step.get("run", "")]
    given = {"GITHUB_REPOSITORY": "Some-Owner/Fast", "GITHUB_SHA": "1a2b", "PLATFORM": "arm64"}
    given["GITHUB_ENV"] = str(tmp_path / "env")
    subprocess.run(["/bin/bash", "-euc", named], env={**os.environ, **given}, check=True)
    assert (tmp_path / "env").read_text(encoding="utf-8") == "IMAGE=ghcr.io/some-owner/fast:1a2b-arm64\n"
    assert "github.repository" not in GITHUB.read_text(encoding="utf-8")


def test_every_job_has_a_timeout() -> None:
    assert all("timeout-minutes" in job for job in workflow()["jobs"].values())
    assert all("timeout" in job for job in gitlab_jobs().values())
    assert "timeout(" in JENKINS.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [GITHUB, GITLAB, JENKINS], ids=lambda file: file.name)
def test_pipeline_runs_all_steps_in_order(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    steps = ["bash .ci/run", *(f"docs/ci/image.sh {step}" for step in ("build", "smoke", "scan", "push"))]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


def test_installed_system_packages_are_those_that_ci_needs() -> None:
    needed = re.findall(r"^need \S+ (\S+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    [installed] = re.findall(r"apt-get install (?:-\S+ )+(.+)$", GITHUB.read_text("utf-8"), re.MULTILINE)
    assert installed.split() == sorted(set(needed))


def test_only_downloaded_packages_are_cached() -> None:
    """A cached .venv would hide packages that are missing in requirements/."""
    assert gitlab_jobs()["test"]["cache"]["paths"] == [".cache/pip"]
    assert "actions/cache" not in GITHUB.read_text(encoding="utf-8")
    assert "rm -rf .venv" in JENKINS.read_text(encoding="utf-8")


def test_jenkinsfile_has_balanced_blocks() -> None:
    """Checks its structure only: there is no Jenkins here to parse it."""
    text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"|//.*", "", JENKINS.read_text(encoding="utf-8"))
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    assert re.match(r"\s*pipeline \{", text)
    assert len(re.findall(r"\bstage\(\)", text)) == len(re.findall(r"\bsteps \{", text))


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_of_the_pipelines_passes_shellcheck(script: str) -> None:
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None and not os.environ.get("CI"):
        pytest.skip("shellcheck is not installed")
    assert found, "shellcheck is missing: ./run.sh install"
    done = subprocess.run([found, "--shell=bash", "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def run_image_sh(step: str, folder: Path, *, failing: str = "none") -> tuple[int, list[str]]:
    """Run a step with a script in place of docker; return the exit code and the calls."""
    (folder / "engine").write_text(STUB, encoding="utf-8")
    (folder / "engine").chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    given = {**os.environ, "CONTAINER_ENGINE": str(folder / "engine"), "IMAGE": "one:two", "CALLS": str(calls)}
    done = subprocess.run(
        [str(IMAGE_SH), step], env={**given, "FAILING": failing}, capture_output=True, text=True, check=False
    )
    return done.returncode, calls.read_text(encoding="utf-8").splitlines()


def test_smoke_test_removes_its_container(tmp_path: Path) -> None:
    """Checks the order of calls; it was run with podman to check that it rejects a bad image."""
    code, calls = run_image_sh("smoke", tmp_path)
    assert code == 0
    assert " ".join(call.split()[0] for call in calls) == "build run run exec run stop inspect logs rm"
    assert "test_api.py --base-url=" in "".join(calls)
    code, calls = run_image_sh("smoke", tmp_path, failing="stop")
    assert code == 1, "the image must stop by itself"
    assert calls[-1].startswith("rm --force")


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("build", r"build --target production --build-arg REVISION=[0-9a-f]{40} --tag one:two \."),
        ("push", "push one:two"),
    ],
)
def test_step_calls_docker_with(step: str, call: str, tmp_path: Path) -> None:
    code, calls = run_image_sh(step, tmp_path)
    assert code == 0
    assert re.fullmatch(call, calls[-1])


def test_scan_mounts_no_folder(tmp_path: Path) -> None:
    """Docker may run in another container, where a folder mounted from here would be empty."""
    code, calls = run_image_sh("scan", tmp_path)
    assert code == 0
    saved, created, copied, started, removed = calls
    archive = saved.removeprefix("save --output ").removesuffix(" one:two")
    assert re.fullmatch(r"create anchore/grype:v[\d.]+ /image\.tar --fail-on high --only-fixed", created)
    assert copied == f"cp {archive} container-1:/image.tar"
    assert started == "start --attach container-1"
    assert removed == "rm --force --volumes container-1"
    assert not Path(archive).parent.exists()


@pytest.mark.parametrize(("step", "call"), [("scan", "start"), ("scan", "cp"), ("push", "push"), ("build", "build")])
def test_step_fails_if_docker_fails(step: str, call: str, tmp_path: Path) -> None:
    code, _ = run_image_sh(step, tmp_path, failing=call)
    assert code == 1


def test_unknown_step_is_a_usage_error(tmp_path: Path) -> None:
    assert run_image_sh("deploy", tmp_path) == (2, [])
