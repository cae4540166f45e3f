"""What the engine notes of a request while it works for it."""

from telemetry.request_work import RequestWork, Stage


def test_slices_of_a_request_extend_its_run() -> None:
    work = RequestWork()
    work.add_run(1.0, 2.0, 3.0)
    work.add_run(1.5, 2.5, 4.0)
    assert work.stages == [Stage("queue", 1.0, 2.0), Stage("run", 2.0, 4.0)]
    assert work.seconds("queue") == 1.0
    assert work.seconds("load") is None


def test_request_that_was_dropped_has_waited_unless_a_part_of_it_ran() -> None:
    work = RequestWork()
    work.add_wait(1.0, 4.0)
    work.add_wait(1.0, 5.0)  # another slice of it
    assert work.stages == [Stage("queue", 1.0, 4.0)]
    work = RequestWork()
    work.add_run(1.0, 2.0, 3.0)
    work.add_wait(1.0, 4.0)
    assert work.stages == [Stage("queue", 1.0, 2.0), Stage("run", 2.0, 3.0)]


def test_text_that_joins_a_run_that_has_begun_did_not_wait() -> None:
    work = RequestWork()
    work.add_run(2.0, 1.0, 3.0)
    assert work.stages == [Stage("queue", 2.0, 2.0), Stage("run", 2.0, 3.0)]
