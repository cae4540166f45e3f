"""Merges what several processes have counted into what one process would have counted.

The parts are dataclasses of one type. A plain field counts something since the start: numbers are added, also those in
dicts, sequences and dataclasses within. Every other field has one of the rules below, as in
`waiting_texts: Current[int]`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeVar, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one field merges.

    Attributes:
        merge: returns the value of the whole from those of the parts.
        at_end: returns what remains of a value when its process has ended.
    """

    merge: Callable[[Sequence[Any]], Any]
    at_end: Callable[[Any], Any]


def first_of(*order: str) -> Rule:
    """Return the rule for one of the words *order*: that of the whole is the first one that any process has."""
    return Rule(lambda values: min(values, key=order.index), lambda _: order[-1])


def _add(values: Sequence[Any]) -> Any:
    first = values[0]
    if is_dataclass(first):
        return merge(values)
    if isinstance(first, dict):
        return {key: _add([value[key] for value in values if key in value]) for key in _unite(values)}
    if isinstance(first, list | tuple):
        return type(first)(_add(column) for column in zip(*values, strict=True))
    return sum(values)


def _keep(value: Any) -> Any:
    """Return a counted value, without the current ones within."""
    if is_dataclass(value):
        return at_end(value)
    if isinstance(value, dict):
        return {key: _keep(part) for key, part in value.items()}
    return value


def _zero(value: Any) -> Any:
    return type(value)()


def _unite(values: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(one for value in values for one in value))


def _join(values: Sequence[Mapping[Any, Sequence[Any]]]) -> dict[Any, list[Any]]:
    return {key: [one for value in values for one in value.get(key, ())] for key in _unite(values)}


COUNTED: Final = Rule(_add, _keep)

Current = Annotated[T, Rule(_add, _zero)]
"""An amount of this moment: added, and gone when the process has ended."""
Highest = Annotated[T, Rule(max, _zero)]
"""An amount of this moment of which the highest one is that of the whole."""
Setting = Annotated[T, Rule(lambda values: values[0], lambda value: value)]
"""A value that is equal in all processes."""
Names = Annotated[T, Rule(_unite, _zero)]
"""A list of names: all of them, once each."""
Samples = Annotated[T, Rule(_join, _zero)]
"""Lists of samples, by name: all of them."""
Derived = Annotated[T, Rule(lambda values: _zero(values[0]), _zero)]
"""What is computed from the merged whole, and is empty before."""


def merge(parts: Sequence[T]) -> T:
    """Return the whole of *parts*, at least one."""
    kind: Any = type(parts[0])
    merged = {name: rule.merge([getattr(part, name) for part in parts]) for name, rule in _rules(kind).items()}
    whole: T = kind(**merged)
    return whole


def at_end(part: T) -> T:
    """Return what remains of *part* when its process has ended: what it has counted."""
    kind: Any = type(part)
    kept: T = kind(**{name: rule.at_end(getattr(part, name)) for name, rule in _rules(kind).items()})
    return kept


@cache
def _rules(kind: type) -> Mapping[str, Rule]:
    """Return the rule of each field of the dataclass *kind*."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: next((rule for rule in _metadata(hint) if isinstance(rule, Rule)), COUNTED)
        for name, hint in hints.items()
    }


def _metadata(hint: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    return found
