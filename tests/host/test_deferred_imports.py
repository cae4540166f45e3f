"""Imports without what is needed later, with real modules on disk."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from host.deferred_imports import Deferred, defer_package, deferred, hidden, resolve_names

LIBRARY = """
import deferred_client
from deferred_client import Failure, connect

ERRORS = (OSError, Failure)


def ask(host: str | Failure = "") -> str:
    return connect(host)


def ask_module() -> str:
    return deferred_client.connect("module")


def ask_safely() -> str:
    try:
        return connect("")
    except ERRORS as error:
        return f"failed: {error}"
"""
CLIENT = """
class Failure(Exception):
    pass


def connect(host):
    if not host:
        raise Failure("no host")
    return f"connected to {host}"
"""


@pytest.fixture(autouse=True)
def _libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "deferred_library.py").write_text(LIBRARY)
    (tmp_path / "deferred_client.py").write_text(CLIENT)
    package = tmp_path / "deferred_package"
    package.mkdir()
    (package / "__init__.py").write_text("from deferred_package.part import PART\nWHOLE = [PART]\n__version__ = '1'\n")
    (package / "part.py").write_text("PART = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("deferred_")]:
        del sys.modules[name]


def test_library_is_imported_without_its_client_until_it_calls_it() -> None:
    with deferred(["deferred_client"]):
        library = import_module("deferred_library")
    assert "deferred_client" not in sys.modules
    assert library.ask("a") == "connected to a"
    assert library.ask_module() == "connected to module"
    assert "deferred_client" in sys.modules


def test_resolved_names_are_the_real_ones_also_where_errors_are_caught() -> None:
    with deferred(["deferred_client"]):
        library = import_module("deferred_library")
    resolve_names(library)
    client = import_module("deferred_client")
    assert (library.deferred_client, library.connect, library.Failure) == (client, client.connect, client.Failure)
    assert library.ask_safely() == "failed: no host"
    assert not any(isinstance(value, Deferred) for value in vars(library).values())


def test_module_that_is_imported_already_is_not_replaced() -> None:
    client = import_module("deferred_client")
    with deferred(["deferred_client"]):
        library = import_module("deferred_library")
    assert library.connect is client.connect
    assert sys.modules["deferred_client"] is client


def test_package_runs_when_one_of_its_own_names_is_used() -> None:
    defer_package("deferred_package")
    part = import_module("deferred_package.part")
    package = sys.modules["deferred_package"]
    assert "WHOLE" not in vars(package)
    assert package.WHOLE == [part.PART]
    assert package.__version__ == "1"
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_hidden_module_counts_as_absent_within_the_block_only() -> None:
    with hidden("deferred_client"), pytest.raises(ImportError):
        import_module("deferred_client")
    assert import_module("deferred_client").connect("a") == "connected to a"


def test_a_stand_in_has_no_special_methods_that_only_the_real_object_would_have() -> None:
    assert not hasattr(Deferred("client.connect"), "__wrapped__")
    assert isinstance(Deferred("client").connect, Deferred)
