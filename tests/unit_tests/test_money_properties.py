"""Money under any clock, in any amounts and however often: nothing is lost, nothing passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langchain_relay import Budget
from langchain_relay.budget import Window
from langchain_relay.delegates.terms import Terms
from langchain_relay.delegates.wire import HostedSide
from langchain_relay.engine.errors import BudgetExceeded
from langchain_relay.engine.ledger import Account, Amount, Limit, MemoryLedger
from langchain_relay.engine.values import SpanEnd, SpanRequest, Usage
from langchain_relay.prices import PriceBook
from langchain_relay.testing import ScriptedDelegate

NANO = Fraction(1, 10**9)
HOUR_S = 3600.0
N = 8
READ, WROTE = 12, 3
EVERYTHING = Account("global", "all")

# --- a clock that jumps, windows that end during a call ------------------------------------------

jumps = st.one_of(
    st.just(0.0),
    st.floats(-2 * HOUR_S, 2 * HOUR_S),
    st.sampled_from([-24 * HOUR_S, -1.0, 1.0, 24 * HOUR_S, 40 * 24 * HOUR_S]),
)


class JumpingClock:
    """Wall-clock time that goes on by the next jump each time it is asked, either way."""

    def __init__(self, by: list[float]) -> None:
        self._by: Iterator[float] = iter(by)
        self.now = 1_800_000_000.0
        self.asked: list[float] = []

    def __call__(self) -> float:
        self.now += next(self._by, 0.0)
        self.asked.append(self.now)
        return self.now


def hand_over(ledger: MemoryLedger, budget: Budget, clock: JumpingClock) -> tuple[SpanEnd, float]:
    """One hand-over, and when it was reserved."""
    terms = Terms(
        delegate=ScriptedDelegate("blue ", usage=(READ, WROTE)), messages=(), model=None,
        price=PriceBook({"scripted": (1, 2)}).find("scripted"), timeout_s=5, max_retries=0,
        allowances=(budget.allowance("r", {}),), ledger=ledger, count=len, now=clock,
        max_tokens=100, records=True,
    )  # fmt: skip
    side = HostedSide(terms, parent=None)
    before = len(clock.asked)
    opened = side.open(SpanRequest(str(uuid4()), "", N))
    end = opened if isinstance(opened, SpanEnd) else side.pull()
    while not isinstance(end, SpanEnd):
        end = side.pull()
    return end, clock.asked[before]


@given(
    st.lists(jumps, max_size=80),
    st.sampled_from(["minute", "hour", "day", "week", "month"]),
    st.integers(0, 3),
)
def test_whatever_the_clock_does_each_call_counts_in_the_window_it_began_in(
    by: list[float], window: Window, calls: int
) -> None:
    ledger, clock = MemoryLedger(), JumpingClock(by)
    budget = Budget(calls=calls, scope="global", window=window)
    admitted: Counter[Account] = Counter()
    for _ in range(12):
        end, began = hand_over(ledger, budget, clock)
        account = budget.allowance("r", {}).account(began)
        # Refused exactly if its own window is full, whichever windows came between.
        assert (end.why == "refused") == (admitted[account] == calls)
        admitted[account] += end.why != "refused"
    one = Amount(READ * 1_000 + WROTE * 2_000, WROTE, 1)
    for account, count in admitted.items():
        assert ledger.spent(account, now=clock.now) == Amount(
            one.cost_nanousd * count, one.tokens * count, count
        )
    total = sum(admitted.values())
    assert ledger.spent(EVERYTHING, now=clock.now).calls == total
    assert not ledger._open
    kept = [entry for entry in ledger.entries() if EVERYTHING in entry.accounts]
    assert [(entry.state, entry.estimated) for entry in kept] == [("settled", False)] * total


# --- nano-dollars against exact arithmetic -------------------------------------------------------

amounts_usd = st.decimals(0, 10**9, allow_nan=False, allow_infinity=False)


@given(amounts_usd)
@example(Decimal("0.0000000009999999999999999999999999999999"))
@example(Decimal("123456789.9999999999999999999999999999"))
def test_a_limit_is_the_whole_nanodollars_below_it(usd: Decimal) -> None:
    limit = Budget(usd=usd).limit_nanousd
    assert limit is not None
    assert limit * NANO <= Fraction(usd) < (limit + 1) * NANO


# With the most tokens these need 25 digits; Decimal keeps 28.
per_mtok = st.one_of(st.just(Decimal(0)), st.decimals("0.001", 2_000, places=9))
tokens = st.integers(0, 10**12)


@given(per_mtok, per_mtok, st.lists(st.tuples(tokens, tokens), max_size=20))
@example(Decimal("0.001000001"), Decimal(2000), [(1, 0), (10**12, 10**12)])
def test_what_a_ledger_adds_up_is_never_below_the_exact_cost_and_a_nanodollar_a_call_above(
    read_usd: Decimal, write_usd: Decimal, calls: list[tuple[int, int]]
) -> None:
    price = PriceBook({"m": (read_usd, write_usd)}).find("m")
    assert price is not None
    ledger, exact = MemoryLedger(), Fraction(0)
    for number, (read, wrote) in enumerate(calls):
        worst = Amount(price.worst_nanousd(read, wrote), wrote, 1)
        actual = Amount(price.cost_nanousd(Usage(read, wrote)), wrote, 1)
        assert actual.cost_nanousd <= worst.cost_nanousd
        made = ledger.reserve([Limit(EVERYTHING)], worst, key=str(number), now=0, expires_at=9)
        ledger.settle(made, actual, now=1)
        exact += (Fraction(read_usd) * read + Fraction(write_usd) * wrote) / 10**6
    spent = ledger.spent(EVERYTHING, now=1).cost_nanousd * NANO
    assert exact <= spent <= exact + len(calls) * NANO


# --- 1,000,000,000 calls -------------------------------------------------------------------------

MANY = 10**9


@given(st.lists(st.integers(0, MANY), max_size=20), st.integers(1, 10**6))
def test_a_thousand_million_calls_in_any_portions_lose_nothing(
    cuts: list[int], nanousd: int
) -> None:
    ledger = MemoryLedger()
    portions = [end - begin for begin, end in pairwise(sorted([0, *cuts, MANY]))]
    limit = Limit(EVERYTHING, cost_nanousd=nanousd * MANY, calls=MANY)
    for number, calls in enumerate(portions):
        amount = Amount(nanousd * calls, 64 * calls, calls)
        made = ledger.reserve([limit], amount, key=str(number), now=0, expires_at=9)
        ledger.settle(made, amount, now=1)
    assert ledger.spent(EVERYTHING, now=1) == Amount(nanousd * MANY, 64 * MANY, MANY)
    for more in (Amount(1), Amount(calls=1)):
        with pytest.raises(BudgetExceeded) as refused:
            ledger.reserve([limit], more, key=f"more {more}", now=1, expires_at=9)
        assert refused.value.left == 0
