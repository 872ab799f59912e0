"""Reserve the worst case, settle the real cost: the invariant under threads and any order."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.engine.errors import BudgetExceeded
from langchain_relay.engine.ledger import (
    Account,
    Amount,
    Limit,
    MemoryLedger,
    Reservation,
    admit,
)

ACCOUNT = Account("run", "r1")


def limit(**limits: Any) -> Limit:
    return Limit(ACCOUNT, **limits)


def reserve(ledger: MemoryLedger, lim: Limit, amount: Amount, key: str, now: float = 0.0) -> object:
    return ledger.reserve([lim], amount, key=key, now=now, expires_at=now + 100)


def test_reserve_settle_spent() -> None:
    ledger = MemoryLedger()
    reservation = ledger.reserve(
        [limit(cost_nanousd=100)], Amount(60, 5, 1), key="a", now=0, expires_at=9
    )
    assert ledger.spent(ACCOUNT, now=0) == Amount()
    ledger.settle(reservation, Amount(40, 3, 1), now=1)
    assert ledger.spent(ACCOUNT, now=1) == Amount(40, 3, 1)


def test_a_refusal_names_what_is_needed_and_left() -> None:
    ledger = MemoryLedger()
    reserve(ledger, limit(cost_nanousd=100), Amount(60), "a")
    with pytest.raises(BudgetExceeded) as refused:
        reserve(ledger, limit(cost_nanousd=100), Amount(60), "b")
    error = refused.value
    assert (error.unit, error.needed, error.left, error.limit) == ("usd", 60, 40, 100)
    assert "0.00000006 USD" in str(error)
    assert "0.00000004 USD" in str(error)


@pytest.mark.parametrize("unit", ["calls", "tokens", "cost_nanousd"])
def test_zero_is_never(unit: str) -> None:
    with pytest.raises(BudgetExceeded):
        reserve(MemoryLedger(), limit(**{unit: 0}), Amount(1, 1, 1), "a")


def test_what_costs_nothing_fits_into_a_budget_of_nothing() -> None:
    reserve(MemoryLedger(), limit(cost_nanousd=0), Amount(0, 5, 1), "a")


def test_released_is_forgotten_and_settled_once() -> None:
    ledger = MemoryLedger()
    lim = limit(calls=1)
    first = ledger.reserve([lim], Amount(calls=1), key="a", now=0, expires_at=9)
    ledger.release(first, now=0)
    ledger.settle(first, Amount(calls=1), now=0)
    second = ledger.reserve([lim], Amount(calls=1), key="b", now=0, expires_at=9)
    ledger.settle(second, Amount(calls=1), now=0)
    ledger.settle(second, Amount(calls=1), now=0)
    assert ledger.spent(ACCOUNT, now=0) == Amount(calls=1)


def test_a_settlement_gives_no_money_back() -> None:
    ledger = MemoryLedger()
    made = ledger.reserve([limit()], Amount(5, 1, 1), key="a", now=0, expires_at=9)
    ledger.settle(made, Amount(-50, -1, -1), now=0)
    assert ledger.booked(ACCOUNT, now=0) == ledger.spent(ACCOUNT, now=0) == Amount()


def test_the_same_key_reserves_once() -> None:
    ledger = MemoryLedger()
    lim = limit(calls=1)
    assert reserve(ledger, lim, Amount(calls=1), "a") is reserve(ledger, lim, Amount(calls=1), "a")


def test_what_expires_is_booked_at_its_worst_case_and_corrected_if_it_comes_after_all() -> None:
    ledger = MemoryLedger()
    lost = ledger.reserve([limit(calls=9)], Amount(50, 5, 1), key="a", now=0, expires_at=10)
    assert ledger.spent(ACCOUNT, now=9) == Amount()
    assert ledger.spent(ACCOUNT, now=10) == Amount(50, 5, 1)
    ledger.settle(lost, Amount(20, 2, 1), now=11)
    ledger.settle(lost, Amount(20, 2, 1), now=12)
    assert ledger.spent(ACCOUNT, now=12) == Amount(20, 2, 1)


def test_two_limits_are_reserved_both_or_none() -> None:
    ledger = MemoryLedger()
    wide = Limit(Account("user", "ann"), calls=0)
    with pytest.raises(BudgetExceeded, match="user"):
        ledger.reserve([limit(calls=9), wide], Amount(calls=1), key="a", now=0, expires_at=9)
    reserve(ledger, limit(calls=1), Amount(calls=1), "b")


def test_a_closed_account_takes_nothing_any_more() -> None:
    ledger = MemoryLedger()
    late = ledger.reserve([limit(calls=1)], Amount(calls=1), key="a", now=0, expires_at=9)
    ledger.close(ACCOUNT)
    ledger.settle(late, Amount(calls=1), now=1)
    assert ledger.spent(ACCOUNT, now=1) == Amount()


def test_the_history_is_bounded_and_the_counters_are_not() -> None:
    ledger = MemoryLedger(history=5)
    still_open = ledger.reserve([limit()], Amount(1, 1, 1), key="open", now=0, expires_at=99)
    for n in range(50):
        made = ledger.reserve([limit()], Amount(1, 1, 1), key=str(n), now=n, expires_at=n + 9)
        if n % 2:
            ledger.settle(made, Amount(1, 1, 1), now=n)
    assert ledger.spent(ACCOUNT, now=98) == Amount(50, 50, 50)
    keys = [entry.key for entry in ledger.entries()]
    assert len(keys) == 6
    assert keys[0] == "open"
    assert ledger.settle(still_open, Amount(1, 1, 1), now=98)
    assert ledger.spent(ACCOUNT, now=98) == Amount(51, 51, 51)


def test_a_closed_account_leaves_no_counters_behind() -> None:
    ledger = MemoryLedger(history=5)
    for n in range(50):
        account = Account("run", str(n))
        made = ledger.reserve([Limit(account)], Amount(1), key=str(n), now=n, expires_at=n + 9)
        ledger.settle(made, Amount(1), now=n)
        ledger.close(account)
    assert not ledger._books
    assert not ledger._open
    assert len(ledger._attempts) == 5


def test_a_limit_that_admits_k_admits_exactly_k_under_a_barrier() -> None:
    ledger, barrier, admitted = MemoryLedger(), threading.Barrier(16), []

    def spend(worker: int) -> None:
        barrier.wait()
        for i in range(50):
            try:
                reservation = ledger.reserve(
                    [limit(cost_nanousd=70)], Amount(10), key=f"{worker}/{i}", now=0, expires_at=9
                )
            except BudgetExceeded:
                continue
            admitted.append(reservation)
            ledger.settle(reservation, Amount(10), now=0)

    threads = [threading.Thread(target=spend, args=(w,)) for w in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 7
    assert ledger.spent(ACCOUNT, now=0).cost_nanousd == 70


def test_nobody_comes_between_the_check_and_the_booking(monkeypatch: pytest.MonkeyPatch) -> None:
    module, check, together = "langchain_relay.engine.ledger", admit, threading.Barrier(8)

    def dawdle(*arguments: Any) -> None:
        check(*arguments)
        time.sleep(0.002)  # time enough for all others, if they could

    monkeypatch.setattr(f"{module}.admit", dawdle)
    ledger, admitted = MemoryLedger(), []

    def ask(worker: int) -> None:
        together.wait()
        with contextlib.suppress(BudgetExceeded):
            admitted.append(reserve(ledger, limit(calls=3), Amount(calls=1), str(worker)))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 3


OPERATION = st.tuples(st.sampled_from(["reserve", "settle", "release", "wait"]), st.integers(0, 30))


@given(st.lists(OPERATION, max_size=40), st.integers(0, 100))
def test_settled_plus_reserved_never_passes_the_limit(
    operations: list[tuple[str, int]], cap: int
) -> None:
    ledger, now = MemoryLedger(), 0.0
    open_: list[Reservation] = []
    settled = 0
    for i, (what, size) in enumerate(operations):
        if what == "reserve":
            booked = settled + sum(r.amount.cost_nanousd for r in open_)
            lim, amount = limit(cost_nanousd=cap), Amount(size)
            if booked + size > cap and size:
                with pytest.raises(BudgetExceeded) as refused:
                    ledger.reserve([lim], amount, key=str(i), now=now, expires_at=now + 20)
                assert refused.value.left == cap - booked
            else:
                open_.append(
                    ledger.reserve([lim], amount, key=str(i), now=now, expires_at=now + 20)
                )
        elif what == "wait":
            now += size
            settled += sum(r.amount.cost_nanousd for r in open_ if r.expires_at <= now)
            open_ = [r for r in open_ if r.expires_at > now]
        elif open_:
            reservation = open_.pop(size % len(open_))
            actual = Amount(min(size, reservation.amount.cost_nanousd) if what == "settle" else 0)
            ledger.settle(reservation, actual, now=now)
            settled += actual.cost_nanousd
        assert ledger.spent(ACCOUNT, now=now).cost_nanousd == settled
        assert settled + sum(r.amount.cost_nanousd for r in open_) <= cap


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_another_thread_books_can_book() -> None:
    ledger = MemoryLedger()
    with ledger._lock:  # as a thread holds it that is not in the child
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # ends it if it waits
            try:
                ledger.reserve([], Amount(1), key="k", now=0, expires_at=9)
            finally:
                os._exit(0 if list(ledger.entries()) else 1)
    assert os.waitpid(child, 0)[1] == 0
