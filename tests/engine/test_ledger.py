"""Accounts of the ledger: what one caller may hold while others hold something as well."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import OverloadedError
from engine.fair_queue import WIDE_SHARE, Caller
from engine.ledger import SHARE_OF_FREE, Account, Reservation

STEP = 0.01


def fill(account: Account, *callers: Caller) -> list[float]:
    """Let *callers* reserve in turns until all are rejected; return what each holds."""
    accepted = True
    while accepted:
        accepted = False
        for caller in callers:
            if account.excess(caller, STEP) <= 0:
                account.hold(caller, STEP)
                accepted = True
    return [account.held_by(caller) for caller in callers]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_callers_share_the_limit_equally_and_leave_room_for_another(count: int) -> None:
    account = Account("bulk", 10.0)
    callers = [(f"caller {number}",) for number in range(count)]
    held = fill(account, *callers)
    assert held == pytest.approx([10.0 * SHARE_OF_FREE / (1 + SHARE_OF_FREE * count)] * count, abs=3 * STEP)
    assert account.excess(("newcomer",), STEP) <= 0
    assert account.callers == count
    assert account.is_new(("newcomer",))
    assert not account.is_new(callers[0])


def test_rounding_rejects_nobody() -> None:
    account = Account("interactive", 20.0)
    flood = ("flood",)
    for _ in range(160):  # 16 and a rounding error
        account.hold(flood, 0.1)
    account.hold(flood, 1e-12)
    assert account.held > 0.8 * account.limit
    assert account.excess(("newcomer",), 0.16 * account.limit) <= 0


def test_network_holds_no_more_than_its_part_however_many_callers_it_has() -> None:
    account = Account("bulk", 100.0)
    network = [(f"2001:db8:0:{number}::/64", "2001:db8::/48") for number in range(200)]
    fill(account, *network)
    assert account.held <= 100.0 * SHARE_OF_FREE * WIDE_SHARE / (1 + SHARE_OF_FREE * WIDE_SHARE) + STEP
    assert account.excess(("192.0.2.1",), STEP) <= 0
    assert account.callers == sum(account.held_by(caller) > 0 for caller in network)
    assert not account.is_new(("2001:db8:0:ffff::/64", "2001:db8::/48"))


def test_rejection_names_what_the_callers_network_holds() -> None:
    account = Account("interactive", 10.0, threads=2)
    fill(account, *[(f"2001:db8:0:{number}::/64", "2001:db8::/48") for number in range(200)])
    with pytest.raises(OverloadedError, match=r"; 0\.0 s of it is yours, 9\.\d s is that of your network\. With"):
        account.check(("2001:db8:0:ffff::/64", "2001:db8::/48"), 1.0)


@settings(derandomize=True, deadline=None)
@given(amounts=st.lists(st.floats(0, 1e6), max_size=20))
def test_account_is_exactly_empty_after_everything_was_released(amounts: list[float]) -> None:
    account = Account("bulk", 10.0)
    reservations = [Reservation([account], (f"{index % 3}", "wide")) for index in range(len(amounts))]
    for reservation, amount in zip(reservations, amounts, strict=True):
        reservation.resize(amount)
    for reservation in reservations:
        with reservation:
            pass
    assert account.held == 0.0
    assert account.callers == 0
