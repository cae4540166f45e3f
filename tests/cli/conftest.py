"""Runs commands in the process of the tests: they use the same code and the same models, and take milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from cli.commands import run
from cli.model_process import ModelWorker, WorkerConfig
from config import SETTING_NAMES
from tests.support.commands import HUB_MODEL, NO_HUB, Outcome, RunCommand, repository_files, repository_of
from tests.support.hubs import Hub, serving, unchanged


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command in this process, with settings such as `run_command("check", "--json", PORT="9000")`.

    It finds models in `tmp_path`, `.env` there, the hub's cache in `tmp_path / "hub"`, and no hub unless HF_ENDPOINT
    is given. Models that have a process of their own otherwise are loaded in this process, too.
    """

    def run_here(*arguments: str, **variables: str) -> Outcome:
        with monkeypatch.context() as patch:
            for name in SETTING_NAMES:
                patch.delenv(name, raising=False)
            for name, value in {"MODELS_DIR": str(tmp_path), "HUB_CACHE_DIR": f"{tmp_path}/hub", **variables}.items():
                patch.setenv(name, value)
            patch.setattr("config.ENV_FILE", tmp_path / ".env")
            use_hub(variables.get("HF_ENDPOINT", NO_HUB), patch, is_offline="HF_HUB_OFFLINE" in variables)
            patch.setattr("cli.check_models.start_worker", worker_in_this_process)
            patch.setattr("cli.compare.start_worker", worker_in_this_process)
            code = run(arguments)
        written = capsys.readouterr()
        return Outcome(code, written.out, written.err)

    return run_here


def use_hub(endpoint: str, patch: pytest.MonkeyPatch, *, is_offline: bool) -> None:
    """Set what `huggingface_hub` reads from the environment when it is imported."""
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(hf_api.api, "endpoint", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


@contextmanager
def worker_in_this_process(config: WorkerConfig) -> Iterator[ModelWorker]:
    yield ModelWorker(config)


@pytest.fixture(scope="session")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(repository_of(HUB_MODEL), repository_files(tmp_path_factory.mktemp("repository"))) as hub:
        yield hub


@pytest.fixture
def hub(_served: Hub) -> Hub:
    """A hub that has HUB_MODEL, without failures and without requests so far."""
    _served.corrupt, _served.rejection = unchanged, None
    _served.requests.clear()
    return _served
