"""Renders deploy/kubernetes/ with the real kustomize, and with secrets made by the commands of the guide."""

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
    "components/shared-results/cache-key.txt",
    "overlays/ha/redis.env",
}

Thing = dict[str, Any]


def kubectl() -> str:
    """Return the path of kubectl. Without it, skip the test; in CI, fail it."""
    beside = Path(sys.executable).parent / "kubectl"  # from requirements/test.txt
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        missing = "kubectl is not installed (pip install -r requirements.txt)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def guide() -> str:
    return GUIDE.read_text(encoding="utf-8")


def guide_block(words: str) -> str:
    """Return the only code block of the guide that contains *words*."""
    blocks = re.findall(r"```\w+\n(.*?)```", guide(), flags=re.DOTALL)
    [block] = [block for block in blocks if words in block]
    return str(block)


def copy_to(folder: Path) -> Path:
    """Copy the files, without secrets, below *folder*, which represents the repository."""
    ignored = shutil.ignore_patterns("redis.env", "api-keys.txt", "metrics-key.txt", "cache-key.txt")
    shutil.copytree(ROOT / FOLDER, folder / FOLDER, ignore=ignored)
    return folder / FOLDER


def make_secrets(repository: Path) -> None:
    """Run the commands of the guide that create the secrets."""
    subprocess.run(["bash", "-euc", guide_block("redis.env")], cwd=repository, check=True)  # noqa: S607


def enable_all_components(overlay: Path) -> None:
    """Uncomment every component in the overlay's kustomization.yaml."""
    file = overlay / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"^#  - (\.\./\.\./components/)", r"  - \1", text, flags=re.MULTILINE), encoding="utf-8")


def kustomize(overlay: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([kubectl(), "kustomize", str(overlay)], capture_output=True, text=True, check=False)


def rendered(overlay: Path) -> list[Thing]:
    done = kustomize(overlay)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize reports a deprecation"
    return list(yaml.safe_load_all(done.stdout))


def of_kind(things: list[Thing], kind: str) -> list[Thing]:
    return [thing for thing in things if thing["kind"] == kind]


def named(things: list[Thing], kind: str, name: str) -> Thing:
    """Return the only object of this kind and name, ignoring the hash at the end of generated names."""
    [found] = [
        thing
        for thing in of_kind(things, kind)
        if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", thing["metadata"]["name"])
    ]
    return found


def pods(things: list[Thing]) -> Iterator[Thing]:
    """Yield the pod templates of all deployments."""
    for deployment in of_kind(things, "Deployment"):
        yield deployment["spec"]["template"]


def memory_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()  # type: ignore[union-attr]  # fails for other forms
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
