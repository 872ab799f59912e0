"""What every ledger promises, and keeps whatever it is made of."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest

from langchain_relay.engine.errors import BudgetExceeded, UsageMistake
from langchain_relay.engine.ledger import MOST, Account, Amount, Entry, Ledger, Limit, Reservation

RUN = Account("run", "r1")
DAY = Account("user", "ann / ü {x} 'q'", "2026-11-21")
ALL = Account("global", "", "2026-11")


def reserve(
    ledger: Ledger, amount: Amount, key: str, *limits: Limit, now: float = 0
) -> Reservation:
    limits = limits or (Limit(RUN),)
    return ledger.reserve(limits, amount, key=key, model="m", now=now, expires_at=now + 100)


def entries(ledger: Ledger) -> dict[str, Entry]:
    return {entry.key: entry for entry in ledger.entries()}


def test_reserve_settle_spent(ledger):
    made = reserve(ledger, Amount(60, 5, 1), "a", Limit(RUN, cost_nanousd=100))
    assert ledger.spent(RUN, now=0) == Amount()
    assert ledger.booked(RUN, now=0) == Amount(60, 5, 1)

    assert ledger.settle(made, Amount(40, 3, 1), now=1)

    assert ledger.spent(RUN, now=1) == ledger.booked(RUN, now=1) == Amount(40, 3, 1)


def test_a_refusal_names_unit_needed_left_limit_scope_and_window(ledger):
    reserve(ledger, Amount(60), "a", Limit(DAY, cost_nanousd=100))
    with pytest.raises(BudgetExceeded) as refused:
        reserve(ledger, Amount(60, 7), "b", Limit(RUN, tokens=7), Limit(DAY, cost_nanousd=100))
    error = refused.value
    assert (error.unit, error.needed, error.left, error.limit) == ("usd", 60, 40, 100)
    assert (error.scope, error.window) == ("user", "2026-11-21")


def test_a_refusal_leaves_nothing_behind(ledger):
    with pytest.raises(BudgetExceeded, match="user"):
        reserve(ledger, Amount(5, 5, 1), "a", Limit(RUN, calls=9), Limit(DAY, calls=0))
    assert ledger.booked(RUN, now=0) == ledger.booked(DAY, now=0) == Amount()
    assert not list(ledger.entries())
    assert reserve(ledger, Amount(1, 1, 1), "a", Limit(RUN, calls=1)).amount == Amount(1, 1, 1)


def test_calls_are_checked_before_tokens_and_tokens_before_money(ledger):
    tight = Limit(RUN, cost_nanousd=0, tokens=0, calls=0)
    looser = Limit(DAY, cost_nanousd=0, tokens=0)
    for limits, amount, unit in [
        ([looser, tight], Amount(1, 1, 1), "calls"),
        ([looser, tight], Amount(1, 1, 0), "tokens"),
        ([looser, tight], Amount(1, 0, 0), "usd"),
    ]:
        with pytest.raises(BudgetExceeded) as refused:
            reserve(ledger, amount, unit, *limits)
        assert refused.value.unit == unit


def test_the_first_limit_that_refuses_is_named(ledger):
    with pytest.raises(BudgetExceeded) as refused:
        reserve(ledger, Amount(9), "a", Limit(ALL, cost_nanousd=8), Limit(RUN, cost_nanousd=0))
    assert (refused.value.scope, refused.value.limit) == ("global", 8)


@pytest.mark.parametrize("unit", ["calls", "tokens", "cost_nanousd"])
def test_zero_is_never(ledger, unit):
    with pytest.raises(BudgetExceeded):
        reserve(ledger, Amount(1, 1, 1), "a", Limit(RUN, **dict[str, Any]({unit: 0})))


def test_what_costs_nothing_fits_into_a_budget_of_nothing(ledger):
    reserve(ledger, Amount(0, 5, 1), "a", Limit(RUN, cost_nanousd=0))
    assert ledger.booked(RUN, now=0) == Amount(0, 5, 1)


def test_exactly_the_limit_fits_and_one_more_does_not(ledger):
    reserve(ledger, Amount(99), "a", Limit(RUN, cost_nanousd=100))
    with pytest.raises(BudgetExceeded):
        reserve(ledger, Amount(2), "b", Limit(RUN, cost_nanousd=100))
    reserve(ledger, Amount(1), "c", Limit(RUN, cost_nanousd=100))


def test_a_limit_without_numbers_only_records(ledger):
    ledger.settle(reserve(ledger, Amount(10**15, 1, 1), "a", Limit(RUN)), Amount(5, 1, 1), now=1)
    assert ledger.spent(RUN, now=1) == Amount(5, 1, 1)


def test_an_attempt_without_accounts_is_in_the_history(ledger):
    made = ledger.reserve([], Amount(3), key="a", now=0, expires_at=9)
    ledger.settle(made, Amount(2), now=1)
    assert list(ledger.entries()) == [Entry("a", (), "", 0, Amount(2), "settled", False)]


def test_two_limits_of_one_account_book_once(ledger):
    reserve(ledger, Amount(3, 1, 1), "a", Limit(RUN, tokens=5), Limit(RUN, calls=5))
    assert ledger.booked(RUN, now=0) == Amount(3, 1, 1)


def test_the_same_key_gives_the_same_reservation_whatever_became_of_it(ledger):
    limits = (Limit(DAY, calls=1), Limit(RUN, calls=1), Limit(ALL))
    made = reserve(ledger, Amount(5, 2, 1), "a", *limits, now=3)
    for end in (lambda: None, lambda: ledger.settle(made, Amount(1), now=4)):
        end()
        again = ledger.reserve(limits, Amount(9, 9, 9), key="a", now=50, expires_at=70)
        assert again == made == Reservation("a", (DAY, RUN, ALL), Amount(5, 2, 1), 103, "m", 3)
    assert ledger.booked(RUN, now=0) == Amount(1)
    gone = reserve(ledger, Amount(7), "b")
    ledger.release(gone, now=1)
    assert reserve(ledger, Amount(7), "b") == gone
    assert ledger.booked(RUN, now=1) == Amount(1)


def test_what_was_settled_stays_settled(ledger):
    made = reserve(ledger, Amount(5, 2, 1), "a")
    ledger.settle(made, Amount(4, 2, 1), now=1)
    ledger.settle(made, Amount(3, 2, 1), now=2)
    ledger.release(made, now=3)
    assert ledger.spent(RUN, now=3) == Amount(4, 2, 1)


def test_what_was_released_stays_released(ledger):
    made = reserve(ledger, Amount(5, 2, 1), "a", Limit(RUN, calls=1))
    ledger.release(made, now=1)
    ledger.settle(made, Amount(3, 2, 1), now=2)
    assert ledger.booked(RUN, now=3) == Amount()
    reserve(ledger, Amount(5, 2, 1), "b", Limit(RUN, calls=1))


def test_only_a_reported_overage_passes_the_limit_and_then_nothing_is_admitted(ledger):
    made = reserve(ledger, Amount(10), "a", Limit(RUN, cost_nanousd=10))
    ledger.settle(made, Amount(25), now=1)
    assert ledger.spent(RUN, now=1) == Amount(25)
    with pytest.raises(BudgetExceeded) as refused:
        reserve(ledger, Amount(1), "b", Limit(RUN, cost_nanousd=10))
    assert refused.value.left == 0


def test_what_expires_is_booked_at_its_worst_case_and_flagged(ledger):
    reserve(ledger, Amount(50, 5, 1), "a", Limit(RUN), Limit(DAY))
    assert ledger.spent(RUN, now=99.5) == Amount()
    for account in (RUN, DAY):
        assert ledger.spent(account, now=100) == Amount(50, 5, 1)
        assert ledger.booked(account, now=100) == Amount(50, 5, 1)
    (entry,) = ledger.entries()
    assert (entry.state, entry.estimated, entry.amount) == ("expired", True, Amount(50, 5, 1))


@pytest.mark.parametrize("noticed", [True, False])
def test_what_is_settled_after_the_expiry_corrects_the_worst_case(ledger, noticed):
    made = reserve(ledger, Amount(50, 5, 1), "a", Limit(RUN), Limit(DAY))
    if noticed:
        assert ledger.spent(RUN, now=100) == Amount(50, 5, 1)
    ledger.settle(made, Amount(20, 7, 1), now=101)
    ledger.settle(made, Amount(1, 1, 1), now=102)
    for account in (RUN, DAY):
        assert ledger.spent(account, now=103) == ledger.booked(account, now=103)
        assert ledger.spent(account, now=103) == Amount(20, 7, 1)
    (entry,) = ledger.entries()
    assert (entry.state, entry.estimated) == ("settled", False)


def test_what_is_released_after_the_expiry_takes_the_worst_case_back(ledger):
    made = reserve(ledger, Amount(50, 5, 1), "a")
    assert ledger.spent(RUN, now=100) == Amount(50, 5, 1)
    ledger.release(made, now=101)
    assert ledger.spent(RUN, now=103) == ledger.booked(RUN, now=103) == Amount()


def test_a_reservation_that_never_expires(ledger):
    ledger.reserve([Limit(RUN)], Amount(5), key="a", now=0, expires_at=inf)
    assert ledger.spent(RUN, now=1e12) == Amount()
    assert ledger.booked(RUN, now=1e12) == Amount(5)


def test_a_settlement_of_what_the_ledger_has_never_heard_of_is_booked_once(ledger):
    lost = Reservation("lost", (RUN, DAY), Amount(50, 5, 1), 100, "m", 2)
    ledger.settle(lost, Amount(20, 2, 1), now=3, estimated=True)
    ledger.settle(lost, Amount(20, 2, 1), now=4)
    for account in (RUN, DAY):
        assert ledger.spent(account, now=5) == ledger.booked(account, now=5) == Amount(20, 2, 1)
    entry = Entry("lost", (RUN, DAY), "m", 2, Amount(20, 2, 1), "settled", True)
    assert list(ledger.entries()) == [entry]


def test_a_release_of_what_the_ledger_has_never_heard_of_is_nothing(ledger):
    lost = Reservation("lost", (RUN,), Amount(50, 5, 1), 100)
    ledger.release(lost, now=3)
    assert ledger.booked(RUN, now=5) == Amount()
    assert not list(ledger.entries())


def test_a_closed_account_begins_anew_and_late_ends_pass_it_by(ledger):
    late = reserve(ledger, Amount(7, 1, 1), "late", Limit(RUN), Limit(DAY))
    ledger.settle(reserve(ledger, Amount(5, 1, 1), "a"), Amount(5, 1, 1), now=1)

    ledger.close(RUN)

    assert ledger.spent(RUN, now=1) == ledger.booked(RUN, now=1) == Amount()
    reserve(ledger, Amount(1, 1, 1), "b", Limit(RUN, calls=1))
    ledger.settle(late, Amount(6, 1, 1), now=2)
    assert ledger.booked(RUN, now=2) == Amount(1, 1, 1)
    assert ledger.spent(DAY, now=2) == Amount(6, 1, 1)
    assert ledger.spent(RUN, now=200) == Amount(1, 1, 1)


def test_the_entries_of_a_closed_account_stay(ledger):
    ledger.settle(reserve(ledger, Amount(5, 1, 1), "a"), Amount(4, 1, 1), now=1)
    ledger.close(RUN)
    assert list(ledger.entries()) == [Entry("a", (RUN,), "m", 0, Amount(4, 1, 1), "settled", False)]


def test_closing_what_is_not_there_is_nothing(ledger):
    ledger.close(RUN)
    assert ledger.spent(RUN, now=0) == Amount()


def test_the_history_has_one_entry_an_attempt_with_what_became_of_it(ledger):
    for key in ("open", "settled", "estimated", "released"):
        made = reserve(ledger, Amount(9, 9, 1), key, Limit(DAY), Limit(RUN))
        if key in ("settled", "estimated"):
            ledger.settle(made, Amount(4, 3, 1), now=1, estimated=key == "estimated")
        elif key == "released":
            ledger.release(made, now=1)
    found = entries(ledger)
    assert {key: (e.state, e.amount, e.estimated) for key, e in found.items()} == {
        "open": ("open", Amount(9, 9, 1), False),
        "settled": ("settled", Amount(4, 3, 1), False),
        "estimated": ("settled", Amount(4, 3, 1), True),
        "released": ("released", Amount(), False),
    }
    assert all(e.accounts == (DAY, RUN) and e.model == "m" for e in found.values())


def test_the_history_is_by_time_and_cut_where_asked(ledger):
    for at in (5.5, 1, 3, 2, 3):
        key = f"{at}/{len(list(ledger.entries()))}"
        reserve(ledger, Amount(1), key, now=at)
    assert [e.at for e in ledger.entries()] == [1, 2, 3, 3, 5.5]
    assert [e.at for e in ledger.entries(2, 5.5)] == [2, 3, 3]
    assert [e.at for e in ledger.entries(until=2)] == [1]
    assert [e.at for e in ledger.entries(since=3.5)] == [5.5]


def test_the_history_is_read_page_by_page_while_others_book(ledger):
    for n in range(600):
        ledger.reserve([], Amount(1), key=f"{n:04}", now=n // 300, expires_at=inf)
    history = ledger.entries()
    first = next(history)
    reserve(ledger, Amount(1), "during", now=-1)
    rest = [entry.key for entry in history]
    assert [first.key, *rest] == [f"{n:04}" for n in range(600)]


def test_scopes_keys_and_windows_are_three_things(ledger):
    accounts = [
        *(Account("a", "b"), Account("a", "b", "c"), Account("a", "bc"), Account("ab", "c")),
        *(Account("a", 'b"]', "c"), Account("a", "B"), Account("a", "b ")),
    ]
    for n, account in enumerate(accounts):
        reserve(ledger, Amount(10**n), str(n), Limit(account))
    assert [ledger.booked(account, now=0).cost_nanousd for account in accounts] == [
        10**n for n in range(len(accounts))
    ]


@pytest.mark.parametrize("huge", [2**53 + 1, 2**62 - 1, 2**62 + 1])
def test_huge_amounts_are_exact_to_the_last_nanodollar(ledger, huge):
    made = reserve(ledger, Amount(huge, huge, huge), "a", Limit(RUN, huge, huge, huge))
    with pytest.raises(BudgetExceeded) as refused:
        reserve(ledger, Amount(1), "b", Limit(RUN, cost_nanousd=huge))
    assert refused.value.left == 0
    reserve(ledger, Amount(1), "c", Limit(RUN, cost_nanousd=huge + 1))
    assert ledger.booked(RUN, now=0) == Amount(huge + 1, huge, huge)
    ledger.settle(made, Amount(huge - 1, huge - 2, 1), now=1)
    assert ledger.booked(RUN, now=1) == Amount(huge, huge - 2, 1)
    assert entries(ledger)["a"].amount == Amount(huge - 1, huge - 2, 1)


def test_counters_refuse_what_they_cannot_hold(ledger):
    reserve(ledger, Amount(MOST - 5), "a")
    with pytest.raises(BudgetExceeded) as refused:
        reserve(ledger, Amount(6), "b")
    assert (refused.value.left, refused.value.limit) == (5, MOST)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, Amount(MOST + 1), "c", Limit(DAY))
    reserve(ledger, Amount(5), "d")
    assert ledger.booked(RUN, now=0) == Amount(MOST)


def test_a_thousand_million_calls_lose_nothing(ledger):
    for step in range(10):
        amount = Amount(10**8 * 3, 10**8 * 64, 10**8)
        made = reserve(ledger, amount, str(step), Limit(ALL, calls=10**9))
        ledger.settle(made, amount, now=1)
    assert ledger.spent(ALL, now=1) == Amount(3 * 10**9, 64 * 10**9, 10**9)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, Amount(calls=1), "one more", Limit(ALL, calls=10**9))


@pytest.mark.parametrize("amount", [Amount(-1), Amount(0, -1), Amount(0, 0, -1)])
def test_nobody_reserves_less_than_nothing(ledger, amount):
    with pytest.raises(UsageMistake, match="negative"):
        reserve(ledger, amount, "a")


def test_a_settlement_gives_no_money_back(ledger):
    ledger.settle(reserve(ledger, Amount(5, 1, 1), "a"), Amount(-50, -1, -1), now=1)
    assert ledger.booked(ALL, now=1) == ledger.spent(ALL, now=1) == Amount()


async def test_the_async_twins_do_the_same(ledger):
    made = await ledger.areserve([Limit(RUN)], Amount(5, 1, 1), key="a", now=0, expires_at=9)
    assert made == ledger.reserve([Limit(RUN)], Amount(9), key="a", now=0, expires_at=9)
    gone = await ledger.areserve([Limit(RUN)], Amount(5, 1, 1), key="b", now=0, expires_at=9)
    assert await ledger.asettle(made, Amount(4, 1, 1), now=1)
    assert await ledger.arelease(gone, now=1)
    assert await ledger.aspent(RUN, now=1) == ledger.booked(RUN, now=1) == Amount(4, 1, 1)
    assert [e.state async for e in ledger.aentries()] == ["settled", "released"]
    with pytest.raises(BudgetExceeded):
        await ledger.areserve([Limit(RUN, 0)], Amount(5), key="c", now=0, expires_at=9)


async def test_an_async_history_may_be_left_in_the_middle(ledger):
    for n in range(3):
        reserve(ledger, Amount(1), str(n))
    async for entry in ledger.aentries():
        assert entry.key == "0"
        break
    reserve(ledger, Amount(1), "after")


def test_a_ledger_serves_one_event_loop_after_the_other(ledger):
    for n in range(3):
        asyncio.run(ledger.areserve([Limit(RUN)], Amount(1), key=str(n), now=0, expires_at=9))
    assert ledger.booked(RUN, now=0) == Amount(3)
