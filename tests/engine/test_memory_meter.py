"""What models take in memory: measured around their loads. The memory is a number that a test sets."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from engine.catalog import Model
from engine.encoder import Encoder
from engine.memory_meter import MemoryMeter


def model(name: str, estimate: int) -> Model:
    return Model(name, 4, None, 1, estimate, description="", license="", source="local")


A, B = model("a", 100), model("b", 300)


class Process:
    """A process whose private memory is a number."""

    def __init__(self) -> None:
        self.private_bytes: int | None = 1000
        self.meter = MemoryMeter(lambda model: model.memory_bytes, read=lambda: self.private_bytes)

    def grow(self, by_bytes: int) -> Callable[[Any], Any]:
        """Return a load, or the optimising after it, which takes memory."""

        def grow(given: Any) -> Any:
            self.private_bytes = (self.private_bytes or 0) + by_bytes
            return given

        return grow

    def load(self, wanted: Model, by_bytes: int) -> dict[str, int]:
        encoder = self.meter.load(self.grow(by_bytes), wanted)
        return self.finish(encoder, 1)

    def finish(self, encoder: Encoder, by_bytes: int = 0) -> dict[str, int]:
        """Return what is reported at the end of a load."""
        reported: dict[str, int] = {}
        self.meter.finish(self.grow(by_bytes), encoder, reported.update)
        return reported


@pytest.fixture
def process() -> Process:
    return Process()


def test_estimate_counts_until_the_first_load_and_what_was_measured_after_it(process: Process) -> None:
    assert process.meter.memory_bytes(A) == 100
    assert process.load(A, 70) == {"a": 71}  # the session for lone texts counts, too
    assert process.meter.memory_bytes(A) == 71
    assert process.load(A, 60) == {"a": 61}
    assert process.meter.memory_bytes(A) == 61
    assert process.meter.memory_bytes(B) == 300


def test_forgotten_model_has_its_estimate_again(process: Process) -> None:
    process.load(A, 70)
    process.meter.forget("a")
    assert process.meter.memory_bytes(A) == 100


def test_growth_of_loads_that_overlap_is_divided_by_their_estimates(process: Process) -> None:
    meter = process.meter
    first = meter.load(process.grow(50), A)
    second = meter.load(process.grow(150), B)
    assert process.finish(first) == {}
    assert meter.memory_bytes(A) == 100
    assert process.finish(second) == {"a": 50, "b": 150}
    assert process.load(A, 29) == {"a": 30}  # alone, it is corrected


def test_load_that_fails_leaves_nothing_measured_for_those_beside_it(process: Process) -> None:
    def fail(_: Model) -> Encoder:
        raise MemoryError

    encoder = process.meter.load(process.grow(50), A)
    with pytest.raises(MemoryError):
        process.meter.load(fail, B)
    assert process.finish(encoder) == {}
    assert process.load(A, 29) == {"a": 30}


def test_load_is_not_measured_while_a_model_is_freed(process: Process) -> None:
    with process.meter.freeing():
        encoder = process.meter.load(process.grow(50), A)
    assert process.finish(encoder) == {}
    encoder = process.meter.load(process.grow(50), A)
    with process.meter.freeing():
        pass
    assert process.finish(encoder) == {}
    assert process.meter.memory_bytes(A) == 100


@pytest.mark.parametrize("growth", [0, -200])
def test_growth_that_cannot_be_one_models_is_not_believed(process: Process, growth: int) -> None:
    encoder = process.meter.load(process.grow(growth), A)
    assert process.finish(encoder) == {}


def test_exchange_of_sessions_changes_what_the_model_takes(process: Process) -> None:
    process.load(A, 70)
    reported: dict[str, int] = {}
    with process.meter.changing("a", reported.update):
        process.grow(-50)(None)
    assert reported == {"a": 21}
    assert process.meter.memory_bytes(A) == 21


def test_exchange_beside_a_load_is_not_measured_and_neither_is_the_load(process: Process) -> None:
    process.load(A, 70)
    reported: dict[str, int] = {}
    with process.meter.changing("a", reported.update):
        encoder = process.meter.load(process.grow(150), B)
    assert process.finish(encoder) == reported == {}
    assert (process.meter.memory_bytes(A), process.meter.memory_bytes(B)) == (71, 300)


def test_system_that_does_not_report_memory_leaves_the_estimates() -> None:
    meter = MemoryMeter(lambda model: model.memory_bytes, read=lambda: None)
    meter.finish(lambda _: None, meter.load(lambda _: cast("Encoder", None), A), lambda taken: pytest.fail(str(taken)))
    assert meter.memory_bytes(A) == 100
