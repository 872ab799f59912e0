"""Reserve the worst case, settle the real cost: the ledger protocol and the one in memory.

Ledgers take `now` and have no clock. Money is an integer number of nano-dollars. Spending is
stored per account; limits belong to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from langchain_relay.engine.errors import BudgetExceeded
from langchain_relay.engine.values import BudgetWarning


@dataclass(frozen=True, slots=True)
class Account:
    """Whose spending: a scope, its key, and the start of its window (`None`: no window)."""

    scope: str
    key: str
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """Money, delegated tokens and calls; also used for limits, where `None` means unlimited."""

    cost_nanousd: int = 0
    tokens: int = 0
    calls: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.cost_nanousd + other.cost_nanousd,
            self.tokens + other.tokens,
            self.calls + other.calls,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.cost_nanousd - other.cost_nanousd,
            self.tokens - other.tokens,
            self.calls - other.calls,
        )


CHECKED_IN_ORDER = ("calls", "tokens", "usd")
"""Tokens before money: a token limit makes a hand-over shorter, and so cheaper."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What one account may spend; `None` is unlimited and 0 means never.

    `warn_at` is the share of a limit at which its owner wants to be warned; `None`: never.
    """

    account: Account
    cost_nanousd: int | None = None
    tokens: int | None = None
    calls: int | None = None
    warn_at: float | None = None

    def check(self, only: str, booked: Amount, needed: Amount) -> None:
        """Refuse if `booked + needed` passes the limit of the unit `only`.

        Raises:
            BudgetExceeded: it does.
        """
        for (unit, limit, used), (_, _, need) in zip(
            self._units(booked), self._units(needed), strict=True
        ):
            if unit == only and need > 0 and used + need > limit:
                raise BudgetExceeded(
                    unit=unit,
                    needed=need,
                    left=max(0, limit - used),
                    limit=limit,
                    scope=self.account.scope,
                    window=self.account.window,
                )

    def warnings(self, spent: Amount) -> list[BudgetWarning]:
        """The units of which `spent` has reached the warning share."""
        if self.warn_at is None:
            return []
        return [
            BudgetWarning(unit, used, limit, self.account.scope, self.account.window)
            for unit, limit, used in self._units(spent)
            if limit > 0 and used >= self.warn_at * limit
        ]

    def _units(self, amount: Amount) -> list[tuple[str, int, int]]:
        """Unit, limit and amount of each limit there is."""
        units = (
            ("calls", self.calls, amount.calls),
            ("usd", self.cost_nanousd, amount.cost_nanousd),
            ("tokens", self.tokens, amount.tokens),
        )
        return [(unit, limit, value) for unit, limit, value in units if limit is not None]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A worst case that is set aside until it is settled, released or expires."""

    key: str
    accounts: tuple[Account, ...]
    amount: Amount
    expires_at: float


class Ledger(Protocol):
    """Keeps what was spent and what is set aside.

    The invariant: at every admission settled + reserved + needed ≤ limit, under any concurrency;
    only an overage that a provider reported can pass a limit.
    """

    def reserve(
        self,
        limits: Sequence[Limit],
        amount: Amount,
        *,
        key: str,
        now: float,
        expires_at: float,
    ) -> Reservation:
        """Set `amount` aside on every account, or on none.

        Asking again with the same `key` gives the same reservation.

        Raises:
            BudgetExceeded: a limit refuses.
        """
        ...

    def settle(self, reservation: Reservation, actual: Amount, *, now: float) -> None:
        """Book `actual` in place of what was set aside. A second time is a no-op."""
        ...

    def release(self, reservation: Reservation, *, now: float) -> None:
        """Set nothing aside any more and book nothing. A second time is a no-op."""
        ...

    def spent(self, account: Account, *, now: float) -> Amount:
        """What was settled, expired reservations at their worst case included."""
        ...

    def close(self, account: Account) -> None:
        """Forget an account that nobody will ask for again, such as one answer's."""
        ...


@dataclass(slots=True)
class _Book:
    settled: Amount = field(default_factory=Amount)
    open: dict[str, Reservation] = field(default_factory=dict)

    @property
    def booked(self) -> Amount:
        return sum((r.amount for r in self.open.values()), self.settled)


class MemoryLedger:
    """A ledger for one process, safe to share between threads. Nothing survives the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._books: dict[Account, _Book] = {}
        self._open: dict[str, Reservation] = {}
        self._expired: dict[str, Reservation] = {}

    def reserve(
        self,
        limits: Sequence[Limit],
        amount: Amount,
        *,
        key: str,
        now: float,
        expires_at: float,
    ) -> Reservation:
        """See `Ledger.reserve`."""
        with self._lock:
            self._expire(now)
            if known := self._open.get(key):
                return known
            for unit in CHECKED_IN_ORDER:
                for limit in limits:
                    limit.check(unit, self._account(limit.account).booked, amount)
            accounts = tuple(dict.fromkeys(limit.account for limit in limits))
            reservation = Reservation(key, accounts, amount, expires_at)
            self._open[key] = reservation
            for account in accounts:
                self._account(account).open[key] = reservation
            return reservation

    def settle(self, reservation: Reservation, actual: Amount, *, now: float) -> None:
        """See `Ledger.settle`. What comes after the expiry corrects the worst case booked then."""
        with self._lock:
            self._expire(now)
            if self._open.pop(reservation.key, None):
                self._book(reservation, actual)
            elif self._expired.pop(reservation.key, None):
                self._book(reservation, actual - reservation.amount)

    def release(self, reservation: Reservation, *, now: float) -> None:
        """See `Ledger.release`."""
        self.settle(reservation, Amount(), now=now)

    def spent(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.spent`."""
        with self._lock:
            self._expire(now)
            book = self._books.get(account)
            return replace(book.settled) if book else Amount()

    def close(self, account: Account) -> None:
        """See `Ledger.close`."""
        with self._lock:
            self._books.pop(account, None)
            for key, lost in list(self._expired.items()):
                if not any(other in self._books for other in lost.accounts):
                    del self._expired[key]

    def _account(self, account: Account) -> _Book:
        return self._books.setdefault(account, _Book())

    def _book(self, reservation: Reservation, amount: Amount) -> None:
        """Book `amount` on every account of `reservation` that has not been closed since."""
        for account in reservation.accounts:
            if book := self._books.get(account):
                book.open.pop(reservation.key, None)
                book.settled += amount

    def _expire(self, now: float) -> None:
        """Book what nobody settled in time at its worst case: unknown is not zero."""
        for reservation in [r for r in self._open.values() if r.expires_at <= now]:
            self._expired[reservation.key] = self._open.pop(reservation.key)
            self._book(reservation, reservation.amount)
