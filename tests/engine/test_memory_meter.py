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
        return self.meter.finish(self.grow(1), encoder)


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
    assert meter.finish(process.grow(0), first) == {}
    assert meter.memory_bytes(A) == 100
    assert meter.finish(process.grow(0), second) == {"a": 50, "b": 150}
    assert process.load(A, 29) == {"a": 30}  # alone, it is corrected


def test_load_that_fails_leaves_nothing_measured_for_those_beside_it(process: Process) -> None:
    def fail(_: Model) -> Encoder:
        raise MemoryError

    encoder = process.meter.load(process.grow(50), A)
    with pytest.raises(MemoryError):
        process.meter.load(fail, B)
    assert process.meter.finish(process.grow(0), encoder) == {}
    assert process.load(A, 29) == {"a": 30}


def test_load_is_not_measured_while_a_model_is_freed(process: Process) -> None:
    with process.meter.freeing():
        encoder = process.meter.load(process.grow(50), A)
    assert process.meter.finish(process.grow(0), encoder) == {}
    encoder = process.meter.load(process.grow(50), A)
    with process.meter.freeing():
        pass
    assert process.meter.finish(process.grow(0), encoder) == {}
    assert process.meter.memory_bytes(A) == 100


@pytest.mark.parametrize("growth", [0, -200])
def test_growth_that_cannot_be_one_models_is_not_believed(process: Process, growth: int) -> None:
    encoder = process.meter.load(process.grow(growth), A)
    assert process.meter.finish(process.grow(0), encoder) == {}


def test_system_that_does_not_report_memory_leaves_the_estimates() -> None:
    meter = MemoryMeter(lambda model: model.memory_bytes, read=lambda: None)
    assert meter.finish(lambda _: None, meter.load(lambda _: cast("Encoder", None), A)) == {}
    assert meter.memory_bytes(A) == 100
