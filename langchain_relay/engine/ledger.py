"""Reserve the worst case, settle the real cost: the ledger protocol and the one in memory.

Ledgers take `now` and have no clock. Money is an integer number of nano-dollars. Spending is
stored per account; limits belong to the caller. What asks a store (SQLite, Redis, PostgreSQL) is
in `langchain_relay.ledgers`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol
from weakref import WeakSet

from langchain_relay.engine.errors import BudgetExceeded, UsageMistake
from langchain_relay.engine.values import BudgetWarning

MOST = 2**63 - 1
"""What a counter holds, 9.2 billion USD: stores keep 64-bit integers. It is everybody's limit."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose spending: a scope, its key, and the start of its window (`None`: no window).

    A scope that begins with `_` is a counter of this package's own, and no spending.
    """

    scope: str
    key: str
    window: str | None = None

    @property
    def internal(self) -> bool:
        """Whether nothing is spent here."""
        return self.scope.startswith("_")


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


CHECKED_IN_ORDER = (("calls", "calls"), ("tokens", "tokens"), ("usd", "cost_nanousd"))
"""Units, fields. Tokens before money: a token limit makes a hand-over shorter, and so cheaper."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What one account may spend; `None` is unlimited and 0 means never.

    `warn_at` is the share of a limit at which its owner wants to be warned; `None`: never.
    `of_share`: `tokens` follows from a share of all tokens, and is called that.
    `before`: what was taken off the owner's limits to get these, for what people are told.
    """

    account: Account
    cost_nanousd: int | None = None
    tokens: int | None = None
    calls: int | None = None
    warn_at: float | None = None
    of_share: bool = False
    before: Amount = Amount()

    def refusal(self, unit: str, *, needed: int, used: int) -> BudgetExceeded:
        """What to raise when `used + needed` would pass this limit."""
        field_name = dict(CHECKED_IN_ORDER)[unit]
        own = getattr(self, field_name)
        limit = MOST if own is None else own
        return BudgetExceeded(
            unit=self._name(unit),
            needed=needed,
            left=max(0, limit - used),
            limit=limit + getattr(self.before, field_name),
            scope=self.account.scope,
            window=self.account.window,
        )

    def warnings(self, spent: Amount) -> list[BudgetWarning]:
        """The units of which `spent` has reached the warning share, and `before` had not."""
        if self.warn_at is None:
            return []
        units = zip(self._units(spent + self.before), self._units(self.before), strict=True)
        return [
            BudgetWarning(self._name(unit), used, limit, self.account.scope, self.account.window)
            for (unit, limit, used), (_, _, before) in units
            if limit > 0 and before < self.warn_at * limit <= used
        ]

    def _name(self, unit: str) -> str:
        return "share" if self.of_share and unit == "tokens" else unit

    def _units(self, amount: Amount) -> list[tuple[str, int, int]]:
        """Unit, whole limit and amount of each limit there is."""
        before = self.before
        units = (
            ("calls", self.calls, before.calls, amount.calls),
            ("usd", self.cost_nanousd, before.cost_nanousd, amount.cost_nanousd),
            ("tokens", self.tokens, before.tokens, amount.tokens),
        )
        return [(unit, left + off, value) for unit, left, off, value in units if left is not None]


def admit(limits: Sequence[Limit], booked: Sequence[Amount], needed: Amount) -> None:
    """Refuse `needed` if with it the `booked` of one account passes that account's limit.

    Raises:
        BudgetExceeded: it does; the first unit of `CHECKED_IN_ORDER`, the first limit.
    """
    for unit, name in CHECKED_IN_ORDER:
        need = getattr(needed, name)
        if need <= 0:
            continue
        for limit, amount in zip(limits, booked, strict=True):
            most = getattr(limit, name)
            used = getattr(amount, name)
            if used + need > (MOST if most is None else most):
                raise limit.refusal(unit, needed=need, used=used)


def distinct_accounts(limits: Sequence[Limit]) -> tuple[Account, ...]:
    """The accounts of `limits`, each once: two limits of one account book once."""
    return tuple(dict.fromkeys(limit.account for limit in limits))


def require_countable(amount: Amount) -> None:
    """Nothing is set aside that would give somebody money back.

    Raises:
        UsageMistake: a part of `amount` is negative.
    """
    if amount.cost_nanousd < 0 or amount.tokens < 0 or amount.calls < 0:
        raise UsageMistake(f"{amount} has a negative part; reserve 0 or more, and settle corrects")


def storable(text: str) -> bool:
    """Whether every store keeps it: no NUL character, no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def countable(amount: Amount) -> Amount:
    """What counters hold: nothing negative, which would give money back, nor above `MOST`."""
    parts = (amount.cost_nanousd, amount.tokens, amount.calls)
    if min(parts) >= 0 and max(parts) <= MOST:
        return amount
    return Amount(*(min(max(part, 0), MOST) for part in parts))


@dataclass(frozen=True, slots=True)
class Reservation:
    """A worst case that is set aside until it is settled, released or expires.

    Attributes:
        key: Whoever asks again with it gets this reservation.
        accounts: Where it is set aside.
        amount: The worst case.
        expires_at: Wall-clock seconds; from then on the worst case counts as spent.
        model: Who is asked, for the history.
        at: Wall-clock seconds when it was made.
    """

    key: str
    accounts: tuple[Account, ...]
    amount: Amount
    expires_at: float
    model: str = ""
    at: float = 0.0


State = Literal["open", "settled", "released", "expired"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt in the history of a ledger.

    Attributes:
        key: The key of its reservation.
        accounts: Where it was booked.
        model: Who was asked; empty if nobody said.
        at: Wall-clock seconds when it was reserved.
        amount: What was booked: the worst case while `open` and when `expired`, nothing when
            `released`, the actual amount when `settled`.
        state: What became of it.
        estimated: `amount` is a worst case or an estimate, and not what a provider reported.
    """

    key: str
    accounts: tuple[Account, ...]
    model: str
    at: float
    amount: Amount
    state: State
    estimated: bool


class Ledger(Protocol):
    """Keeps what was spent and what is set aside.

    The invariant: at every admission settled + reserved + needed ≤ limit, under any concurrency;
    only an overage that a provider reported can pass a limit. The methods with an `a` in front are
    the same for event loops.
    """

    def reserve(
        self,
        limits: Sequence[Limit],
        amount: Amount,
        *,
        key: str,
        model: str = "",
        now: float,
        expires_at: float,
    ) -> Reservation:
        """Set `amount` aside on every account, or on none.

        Asking again with the same `key` gives the same reservation, whatever became of it. A limit
        without numbers only records.

        Raises:
            BudgetExceeded: a limit refuses.
            LedgerError: the store cannot be reached.
        """
        ...

    def settle(
        self, reservation: Reservation, actual: Amount, *, now: float, estimated: bool = False
    ) -> bool:
        """Book `actual` in place of what was set aside. A second time is a no-op.

        What comes after the expiry corrects the worst case booked then; what the ledger has never
        heard of is booked all the same. `False`: the store cannot be reached; it is kept here and
        booked when the store is back.
        """
        ...

    def release(self, reservation: Reservation, *, now: float) -> bool:
        """Set nothing aside any more and book nothing. A second time is a no-op. See `settle`."""
        ...

    def spent(self, account: Account, *, now: float) -> Amount:
        """What was settled, expired reservations at their worst case included.

        Raises:
            LedgerError: the store cannot be reached.
        """
        ...

    def booked(self, account: Account, *, now: float) -> Amount:
        """What was settled or is set aside: what a limit is compared with.

        Raises:
            LedgerError: the store cannot be reached.
        """
        ...

    def entries(self, since: float | None = None, until: float | None = None) -> Iterator[Entry]:
        """The attempts reserved at `since` or later and before `until`, oldest first, one by one.

        Raises:
            LedgerError: the store cannot be reached.
        """
        ...

    def close(self, account: Account) -> None:
        """Forget the counters of an account nobody will ask for again, such as one answer's.

        Raises:
            LedgerError: the store cannot be reached.
        """
        ...

    async def areserve(
        self,
        limits: Sequence[Limit],
        amount: Amount,
        *,
        key: str,
        model: str = "",
        now: float,
        expires_at: float,
    ) -> Reservation:
        """See `reserve`."""
        ...

    async def asettle(
        self, reservation: Reservation, actual: Amount, *, now: float, estimated: bool = False
    ) -> bool:
        """See `settle`."""
        ...

    async def arelease(self, reservation: Reservation, *, now: float) -> bool:
        """See `release`."""
        ...

    async def aspent(self, account: Account, *, now: float) -> Amount:
        """See `spent`."""
        ...

    async def aclose(self, account: Account) -> None:
        """See `close`."""
        ...

    def aentries(
        self, since: float | None = None, until: float | None = None
    ) -> AsyncIterator[Entry]:
        """See `entries`."""
        ...


@dataclass(slots=True)
class _Book:
    """The counters of one account. Who holds one may outlive the account: it was closed."""

    settled: Amount = field(default_factory=Amount)
    booked: Amount = field(default_factory=Amount)


@dataclass(slots=True)
class _Attempt:
    """`outcome` is replaced as a whole, so that the history reads it without the lock."""

    reservation: Reservation
    books: tuple[_Book, ...]
    outcome: tuple[State, Amount, bool]

    @property
    def entry(self) -> Entry:
        made, (state, amount, estimated) = self.reservation, self.outcome
        return Entry(made.key, made.accounts, made.model, made.at, amount, state, estimated)


class MemoryLedger:
    """A ledger for one process, safe to share between threads. Nothing survives the process.

    Args:
        history: Finished attempts that are remembered, for `entries` and for keys that come a
            second time. Counters forget nothing, however many there were.
    """

    def __init__(self, *, history: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._history = history
        self._books: dict[Account, _Book] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._open: dict[str, _Attempt] = {}
        self._finished: deque[str] = deque()
        self._none_expires_before = inf
        _LEDGERS.add(self)

    def reserve(
        self,
        limits: Sequence[Limit],
        amount: Amount,
        *,
        key: str,
        model: str = "",
        now: float,
        expires_at: float,
    ) -> Reservation:
        """See `Ledger.reserve`."""
        require_countable(amount)
        with self._lock:
            self._expire(now)
            if known := self._attempts.get(key):
                return known.reservation
            admit(limits, [self._booked(limit.account) for limit in limits], amount)
            reservation = Reservation(
                key, distinct_accounts(limits), amount, expires_at, model, now
            )
            attempt = self._attempt(reservation, ("open", amount, False))
            for book in attempt.books:
                book.booked += amount
            self._open[key] = attempt
            self._none_expires_before = min(self._none_expires_before, expires_at)
            return reservation

    def settle(
        self, reservation: Reservation, actual: Amount, *, now: float, estimated: bool = False
    ) -> bool:
        """See `Ledger.settle`."""
        del now  # an attempt that is settled late comes to the same, expired meanwhile or not
        with self._lock:
            self._finish(reservation, ("settled", countable(actual), estimated))
        return True

    def release(self, reservation: Reservation, *, now: float) -> bool:
        """See `Ledger.release`."""
        del now
        with self._lock:
            if reservation.key in self._attempts:
                self._finish(reservation, ("released", Amount(), False))
        return True

    def spent(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.spent`."""
        with self._lock:
            self._expire(now)
            book = self._books.get(account)
            return book.settled if book else Amount()

    def booked(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.booked`."""
        with self._lock:
            self._expire(now)
            return self._booked(account)

    def entries(self, since: float | None = None, until: float | None = None) -> Iterator[Entry]:
        """See `Ledger.entries`; the last `history` attempts and those that are open."""
        with self._lock:
            attempts = list(self._attempts.values())
        attempts.sort(key=lambda attempt: attempt.reservation.at)
        for attempt in attempts:
            at = attempt.reservation.at
            if (since is None or at >= since) and (until is None or at < until):
                yield attempt.entry

    def close(self, account: Account) -> None:
        """See `Ledger.close`."""
        with self._lock:
            self._books.pop(account, None)

    async def areserve(
        self,
        limits: Sequence[Limit],
        amount: Amount,
        *,
        key: str,
        model: str = "",
        now: float,
        expires_at: float,
    ) -> Reservation:
        """See `Ledger.reserve`."""
        return self.reserve(limits, amount, key=key, model=model, now=now, expires_at=expires_at)

    async def asettle(
        self, reservation: Reservation, actual: Amount, *, now: float, estimated: bool = False
    ) -> bool:
        """See `Ledger.settle`."""
        return self.settle(reservation, actual, now=now, estimated=estimated)

    async def arelease(self, reservation: Reservation, *, now: float) -> bool:
        """See `Ledger.release`."""
        return self.release(reservation, now=now)

    async def aspent(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.spent`."""
        return self.spent(account, now=now)

    async def aclose(self, account: Account) -> None:
        """See `Ledger.close`."""
        self.close(account)

    async def aentries(
        self, since: float | None = None, until: float | None = None
    ) -> AsyncIterator[Entry]:
        """See `Ledger.entries`."""
        for entry in self.entries(since, until):
            yield entry

    def _booked(self, account: Account) -> Amount:
        book = self._books.get(account)
        return book.booked if book else Amount()

    def _attempt(self, reservation: Reservation, outcome: tuple[State, Amount, bool]) -> _Attempt:
        books = tuple(self._books.setdefault(a, _Book()) for a in reservation.accounts)
        attempt = self._attempts[reservation.key] = _Attempt(reservation, books, outcome)
        return attempt

    def _finish(self, reservation: Reservation, outcome: tuple[State, Amount, bool]) -> None:
        """Book the end of an attempt, unless it has one that is final."""
        attempt = self._attempts.get(reservation.key)
        if attempt is None:  # its reserve was lost, or was never asked for
            attempt, state, set_aside = self._attempt(reservation, outcome), "open", Amount()
        else:
            state, set_aside = attempt.outcome[0], attempt.reservation.amount
        if state in ("open", "expired"):
            attempt.outcome = outcome
            for book in attempt.books:
                book.booked += outcome[1] - set_aside
                book.settled += outcome[1] - (set_aside if state == "expired" else Amount())
        if state == "open":
            self._open.pop(reservation.key, None)
            self._remember(reservation.key)

    def _expire(self, now: float) -> None:
        """Book what nobody settled in time at its worst case: unknown is not zero."""
        if now < self._none_expires_before:
            return
        for attempt in [a for a in self._open.values() if a.reservation.expires_at <= now]:
            worst = attempt.reservation.amount
            attempt.outcome = ("expired", worst, True)
            for book in attempt.books:
                book.settled += worst
            del self._open[attempt.reservation.key]
            self._remember(attempt.reservation.key)
        ends = (attempt.reservation.expires_at for attempt in self._open.values())
        self._none_expires_before = min(ends, default=inf)

    def _remember(self, key: str) -> None:
        """The last of the finished attempts; older ones are in the counters only."""
        self._finished.append(key)
        if len(self._finished) > self._history:
            self._attempts.pop(self._finished.popleft(), None)

    def _after_fork(self) -> None:
        """Whoever held the lock is not in the child."""
        self._lock = threading.Lock()


_LEDGERS: WeakSet[MemoryLedger] = WeakSet()


def _begin_anew_in_the_child() -> None:
    for ledger in list(_LEDGERS):
        ledger._after_fork()  # noqa: SLF001 - the same module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_the_child)
