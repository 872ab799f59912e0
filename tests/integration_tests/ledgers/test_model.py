"""Each ledger against a model of a few lines whose money is `Decimal`, over any order of events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from langchain_relay.engine.errors import BudgetExceeded
from langchain_relay.engine.ledger import MOST, Account, Amount, Ledger, Limit, Reservation
from tests.integration_tests.ledgers.places import Place, opened
from tests.soaks import SOAK

EXAMPLES = 500 if SOAK else 15
NANO = Decimal("1e-9")
SCOPES = ("run", "user", "global")
_runs = count()

sizes = st.one_of(
    st.integers(0, 20),
    st.integers(2**53 - 2, 2**53 + 2),
    st.integers(2**62 - 2, 2**62 + 2),
)
amounts = st.builds(Amount, sizes, st.integers(0, 20), st.integers(0, 2))
caps = st.one_of(st.none(), st.just(0), st.integers(0, 60), st.integers(2**62, MOST))


@dataclass
class Attempt:
    """What the model knows of one; `accounts` with their generation, which closing ends."""

    made: Reservation
    accounts: list[tuple[Account, int]]
    worst: tuple[Decimal, int, int]
    actual: tuple[Decimal, int, int]
    state: str = "open"


def in_usd(amount: Amount) -> tuple[Decimal, int, int]:
    return Decimal(amount.cost_nanousd) * NANO, amount.tokens, amount.calls


class AgainstAModel(RuleBasedStateMachine):
    """Windows are cut from the clock, which jumps both ways; a window that ends is just left."""

    ledger: Ledger

    def __init__(self) -> None:
        super().__init__()
        self.run, self.number = next(_runs), count()
        self.now = 1000.0
        self.attempts: list[Attempt] = []
        self.generations: dict[Account, int] = {}

    def account(self, scope: str) -> Account:
        window = f"w{int(self.now // 50)}" if scope == "user" else None
        return Account(scope, f"{self.run}", window)

    def named(self, account: Account) -> tuple[Account, int]:
        return account, self.generations.get(account, 0)

    def sums(self, account: Account, *states: str) -> tuple[Decimal, int, int]:
        found = [
            a for a in self.attempts if a.state in states and self.named(account) in a.accounts
        ]
        counted = [a.actual if a.state == "settled" else a.worst for a in found]
        usd, tokens, calls = zip(*counted, strict=True) if counted else ((), (), ())
        return sum(usd, Decimal(0)), sum(tokens), sum(calls)

    def booked(self, account: Account) -> tuple[Decimal, int, int]:
        return self.sums(account, "open", "settled", "expired")

    def expire(self) -> None:
        for attempt in self.attempts:
            if attempt.state == "open" and attempt.made.expires_at <= self.now:
                attempt.state = "expired"

    def holds(self, accounts: list[tuple[Account, int]], more: Amount) -> bool:
        """Whether the counters can; what they stop at is another test's."""
        booked = [self.booked(a) for a, _ in accounts if self.named(a) in accounts]
        return all(usd + in_usd(more)[0] <= Decimal(MOST) * NANO for usd, _, _ in booked)

    @rule(
        scopes=st.lists(st.sampled_from(SCOPES), max_size=3),
        amount=amounts,
        cap=st.tuples(caps, caps, caps),
        expires_in=st.integers(0, 120),
    )
    def reserve(self, scopes, amount, cap, expires_in):
        self.expire()
        limits = [Limit(self.account(s), *cap) for s in scopes]
        asked = {
            "key": f"{self.run}/{next(self.number)}",
            "model": "m",
            "now": self.now,
            "expires_at": self.now + expires_in,
        }
        refused = self.refused(limits, amount)
        if refused is None:
            made = self.ledger.reserve(limits, amount, **asked)
            accounts = [self.named(a) for a in dict.fromkeys(limit.account for limit in limits)]
            self.attempts.append(Attempt(made, accounts, in_usd(amount), in_usd(amount)))
        else:
            with pytest.raises(BudgetExceeded) as error:
                self.ledger.reserve(limits, amount, **asked)
            assert (error.value.unit, error.value.scope, error.value.left) == refused

    def refused(self, limits: list[Limit], amount: Amount) -> tuple[str, str, int] | None:
        for unit, at in (("calls", 2), ("tokens", 1), ("usd", 0)):
            for limit in limits:
                most = (limit.cost_nanousd, limit.tokens, limit.calls)[at]
                scale = NANO if at == 0 else 1
                top = Decimal(MOST if most is None else most) * scale
                used, need = self.booked(limit.account)[at], in_usd(amount)[at]
                if need > 0 and used + need > top:
                    return unit, limit.account.scope, int(max(Decimal(0), top - used) / scale)
        return None

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def reserve_again(self, data):
        self.expire()
        known = data.draw(st.sampled_from(self.attempts))
        again = self.ledger.reserve(
            [Limit(self.account("run"), 0, 0, 0)],
            Amount(1, 1, 1),
            key=known.made.key,
            now=self.now,
            expires_at=self.now,
        )
        assert again == known.made

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), actual=amounts, release=st.booleans())
    def end(self, data, actual, release):
        attempt = data.draw(st.sampled_from(self.attempts))
        if not self.holds(attempt.accounts, actual):
            return
        if release:
            assert self.ledger.release(attempt.made, now=self.now)
        else:
            assert self.ledger.settle(attempt.made, actual, now=self.now)
        if attempt.state in ("open", "expired"):
            attempt.state = "released" if release else "settled"
            attempt.actual = in_usd(actual)

    @rule(
        scopes=st.lists(st.sampled_from(SCOPES), max_size=2, unique=True),
        actual=amounts,
        worst=amounts,
    )
    def settle_what_was_never_reserved(self, scopes, actual, worst):
        accounts = [self.named(self.account(s)) for s in scopes]
        if not self.holds(accounts, actual):
            return
        key = f"{self.run}/{next(self.number)}"
        made = Reservation(key, tuple(a for a, _ in accounts), worst, self.now, "m", self.now)
        assert self.ledger.settle(made, actual, now=self.now)
        self.attempts.append(Attempt(made, accounts, in_usd(worst), in_usd(actual), "settled"))

    @rule(by=st.sampled_from([1, 10, 49, 51, 200, -1, -30, -500]))
    def jump(self, by):
        self.now += by

    @rule(scope=st.sampled_from(SCOPES))
    def close(self, scope):
        account = self.account(scope)
        self.ledger.close(account)
        self.generations[account] = self.generations.get(account, 0) + 1

    @invariant()
    def both_have_the_same_sums(self):
        self.expire()
        for scope in SCOPES:
            account = self.account(scope)
            spent = self.ledger.spent(account, now=self.now)
            assert in_usd(spent) == self.sums(account, "settled", "expired")
            assert in_usd(self.ledger.booked(account, now=self.now)) == self.booked(account)

    def teardown(self) -> None:
        states = {e.key: e.state for e in self.ledger.entries() if e.key.startswith(f"{self.run}/")}
        assert states == {a.made.key: a.state for a in self.attempts}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def test_any_order_of_events_comes_to_the_sums_of_the_model(place: Place, stack: ExitStack):
    shared = stack.enter_context(opened(place))

    class Machine(AgainstAModel):
        ledger = shared

    checks: Any = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES * (10 if place.kind == "memory" else 1),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=checks,
        ),
    )
