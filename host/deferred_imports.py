"""Imports a library without what it needs only for some of its work, such as downloads.

The library is unchanged: while its modules are imported, other modules that they import are replaced by stand-ins.
A name that is taken from a stand-in imports the real module when it is first called.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any


class Deferred:
    """Stands for a name, such as `requests.get`, whose module is imported when it is first called.

    Anything else, such as `isinstance` or `except`, needs the real object: see `resolve_names`.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Deferred":
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return resolve_name(self._name)(*args, **kwargs)

    def __ror__(self, other: Any) -> Any:
        """Leave this name out of an annotation such as `str | Image`."""
        return other


class _StandIn(ModuleType):
    """A module that is not imported yet."""

    def __getattr__(self, name: str) -> Deferred:
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(f"{self.__name__}.{name}")


class _DeferredPackage(ModuleType):
    """A package whose `__init__` runs when one of its own names is first used."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if spec is None or spec.loader is None or (name.startswith("__") and name not in ("__version__", "__all__")):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]  # its `__init__` runs once
        spec.loader.exec_module(self)
        return getattr(self, name)


def defer_package(name: str) -> None:
    """Let submodules of a package be imported before the `__init__` of the package has run."""
    if name not in sys.modules and (spec := find_spec(name)) is not None:
        package = module_from_spec(spec)
        package.__class__ = _DeferredPackage
        sys.modules[name] = package


@contextmanager
def deferred(modules: Sequence[str]) -> Iterator[None]:
    """Replace those of *modules* that are not imported yet by placeholders, for the imports within the block."""
    names = [name for name in modules if name not in sys.modules]
    sys.modules.update({name: _StandIn(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Let imports of *module* within the block fail as if it were not installed, unless it is imported already."""
    is_hidden = module not in sys.modules
    if is_hidden:
        sys.modules[module] = None  # type: ignore[assignment]  # the import system's mark for a module that is absent
    try:
        yield
    finally:
        if is_hidden:
            del sys.modules[module]


def resolve_names(module: ModuleType) -> None:
    """Replace the deferred names of *module* by what they stand for, also in tuples, as for `except`. Blocks."""
    for name, value in list(vars(module).items()):
        if isinstance(value, tuple):
            setattr(module, name, tuple(map(_resolved, value)))
        else:
            setattr(module, name, _resolved(value))


def _resolved(value: Any) -> Any:
    match value:
        case Deferred():
            return resolve_name(value._name)  # noqa: SLF001 - of the class above
        case _StandIn():
            return import_module(value.__name__)
    return value
