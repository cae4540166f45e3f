"""The files of deploy/kubernetes/ as a real kustomize renders them, with secrets made as the guide says."""

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

from tests.support.servers import ROOT

FOLDER = Path("deploy") / "kubernetes"
GUIDE = ROOT / "docs" / "production" / "kubernetes.md"
SECRETS = {
    "components/api-keys/api-keys.txt",
    "components/api-keys/metrics-key.txt",
    "overlays/ha/redis.env",
}

Thing = dict[str, Any]


def kubectl() -> str:
    """The command; without it the test is skipped, or fails where CI promises that all is there."""
    beside = Path(sys.executable).parent / "kubectl"  # from requirements/test.txt
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        missing = "kubectl is not installed (pip install -r requirements.txt)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def guide_section() -> str:
    return GUIDE.read_text(encoding="utf-8")


def guide_block(words: str) -> str:
    """The commands of the guide's Kubernetes section, of the one block that holds these *words*."""
    blocks = re.findall(r"```\w+\n(.*?)```", guide_section(), flags=re.DOTALL)
    [block] = [block for block in blocks if words in block]
    return str(block)


def copy_to(folder: Path) -> Path:
    """A copy of the files in *folder*, which stands for the repository; whatever secrets lie here stay here."""
    ignored = shutil.ignore_patterns("redis.env", "api-keys.txt", "metrics-key.txt")
    shutil.copytree(ROOT / FOLDER, folder / FOLDER, ignore=ignored)
    return folder / FOLDER


def make_secrets(repository: Path) -> None:
    """Run the guide's commands that make them."""
    subprocess.run(["bash", "-euc", guide_block("redis.env")], cwd=repository, check=True)  # noqa: S607


def with_all_components(overlay: Path) -> None:
    """Take the comment sign from every component that an overlay names."""
    file = overlay / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"^#  - (\.\./\.\./components/)", r"  - \1", text, flags=re.MULTILINE), encoding="utf-8")


def kustomize(overlay: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([kubectl(), "kustomize", str(overlay)], capture_output=True, text=True, check=False)


def rendered(overlay: Path) -> list[Thing]:
    done = kustomize(overlay)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns of what will not work for long"
    return list(yaml.safe_load_all(done.stdout))


def of_kind(things: list[Thing], kind: str) -> list[Thing]:
    return [thing for thing in things if thing["kind"] == kind]


def named(things: list[Thing], kind: str, name: str) -> Thing:
    """The one of this kind and name; the hash at the end of a generated name is left out."""
    [found] = [
        thing
        for thing in of_kind(things, kind)
        if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", thing["metadata"]["name"])
    ]
    return found


def pods(things: list[Thing]) -> Iterator[Thing]:
    """The pods' templates."""
    for deployment in of_kind(things, "Deployment"):
        yield deployment["spec"]["template"]


def memory_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()  # type: ignore[union-attr]  # fails if it is none
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
