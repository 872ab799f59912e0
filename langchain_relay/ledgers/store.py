"""What the ledgers that ask a store have in common: lost connections, and the async twins.

It knows nothing of SQL or Redis. A lost connection makes `reserve` refuse. What was spent meanwhile
waits in this process and is booked when the store is back; if the process ends first, the store
books the worst case when the reservation expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import ClassVar, Literal, Self
from weakref import WeakSet

from langchain_relay.engine.ledger import (
    Account,
    Amount,
    Entry,
    Limit,
    Reservation,
    admit,
    countable,
    distinct_accounts,
    require_countable,
    storable,
)
from langchain_relay.errors import LedgerError, UsageMistake

LOG = logging.getLogger(__name__)

PAGE = 500
"""Entries that are read at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt, to be booked once."""

    reservation: Reservation
    state: Literal["settled", "released"]
    actual: Amount
    now: float
    estimated: bool


class StoreLedger(ABC):
    """A ledger over a store that several processes share and that can be away.

    Subclasses raise the errors of their client, `lost`, and ask again once on a new connection
    where that is safe: every operation may be sent twice.
    """

    lost: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, where: str) -> None:
        self._where = where
        self._waiting: deque[Outcome] = deque()
        self._flushing = threading.Lock()
        _LEDGERS.add(self)

    @property
    def waiting(self) -> int:
        """Settlements and releases that wait here until the store is back."""
        return len(self._waiting)

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
        accounts = distinct_accounts(limits)
        _require_storable(key, model, accounts)
        asked = Reservation(key, accounts, countable(amount), expires_at, model, now)
        if asked.amount != amount:  # no counter holds it
            admit(limits, [Amount()] * len(limits), amount)
        with self._reaching():
            self._flush()
            return self._reserve(tuple(limits), asked)

    def settle(
        self, reservation: Reservation, actual: Amount, *, now: float, estimated: bool = False
    ) -> bool:
        """See `Ledger.settle`."""
        # What no store can keep would wait for ever, and everything else behind it.
        _require_storable(reservation.key, reservation.model, reservation.accounts)
        return self._end(Outcome(reservation, "settled", countable(actual), now, estimated))

    def release(self, reservation: Reservation, *, now: float) -> bool:
        """See `Ledger.release`."""
        return self._end(Outcome(reservation, "released", Amount(), now, estimated=False))

    def spent(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.spent`."""
        return self._read_balance(account, now)[0]

    def booked(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.booked`."""
        return self._read_balance(account, now)[1]

    def entries(self, since: float | None = None, until: float | None = None) -> Iterator[Entry]:
        """See `Ledger.entries`. A few hundred are read at once."""
        with self._reaching():
            self._flush()
            yield from self._entries(since, until)

    def close(self, account: Account) -> None:
        """See `Ledger.close`. Its entries stay."""
        with self._reaching():
            self._close(account)

    def disconnect(self) -> None:
        """Book what still waits, if the store can be reached, and close the connections.

        The ledger can be used again afterwards: it connects anew.
        """
        if self._waiting:
            with contextlib.suppress(LedgerError, UsageMistake), self._reaching():
                self._flush()
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disconnect()

    # --- the same for event loops: threads over the same connections, so that no loop owns them ---

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
        """See `Ledger.reserve`. Cancelled, it releases what the store may have set aside."""
        made: list[Reservation] = []
        cancelled = threading.Event()

        def reserve() -> Reservation:
            made.append(
                self.reserve(limits, amount, key=key, model=model, now=now, expires_at=expires_at)
            )
            if cancelled.is_set():
                self.release(made[0], now=now)
            return made[0]

        try:
            return await asyncio.to_thread(reserve)
        except asyncio.CancelledError:
            cancelled.set()
            if made:  # the thread was done before it could see the event; a second time is a no-op
                release = partial(self.release, made[0], now=now)
                asyncio.get_running_loop().run_in_executor(None, release)
            raise

    async def asettle(
        self, reservation: Reservation, actual: Amount, *, now: float, estimated: bool = False
    ) -> bool:
        """See `Ledger.settle`. Cancelled, it is booked all the same."""
        return await asyncio.to_thread(
            self.settle, reservation, actual, now=now, estimated=estimated
        )

    async def arelease(self, reservation: Reservation, *, now: float) -> bool:
        """See `Ledger.release`. Cancelled, it is released all the same."""
        return await asyncio.to_thread(self.release, reservation, now=now)

    async def aspent(self, account: Account, *, now: float) -> Amount:
        """See `Ledger.spent`."""
        return await asyncio.to_thread(self.spent, account, now=now)

    async def aclose(self, account: Account) -> None:
        """See `Ledger.close`."""
        await asyncio.to_thread(self.close, account)

    async def aentries(
        self, since: float | None = None, until: float | None = None
    ) -> AsyncIterator[Entry]:
        """See `Ledger.entries`."""
        found = self.entries(since, until)
        try:
            while page := await asyncio.to_thread(lambda: list(islice(found, PAGE))):
                for entry in page:
                    yield entry
        finally:
            await asyncio.to_thread(_closed, found)

    # --- what a store does ------------------------------------------------------------------------

    @abstractmethod
    def _reserve(self, limits: tuple[Limit, ...], asked: Reservation) -> Reservation:
        """Set aside, or give what is there under that key, in one transaction."""

    @abstractmethod
    def _finish(self, outcome: Outcome) -> None:
        """Book the end of an attempt in one transaction, unless it has one that is final."""

    @abstractmethod
    def _balance(self, account: Account, now: float) -> tuple[Amount, Amount]:
        """Settled, and settled with reserved, after what expired was booked."""

    @abstractmethod
    def _entries(self, since: float | None, until: float | None) -> Iterator[Entry]:
        """The history by time of reservation."""

    @abstractmethod
    def _close(self, account: Account) -> None:
        """Forget the counters of an account."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connections that are open and idle."""

    @abstractmethod
    def _abandon(self) -> None:
        """After a fork: leave the parent's connections and locks alone and begin with none."""

    # --- lost connections -------------------------------------------------------------------------

    def _read_balance(self, account: Account, now: float) -> tuple[Amount, Amount]:
        with self._reaching():
            self._flush()
            return self._balance(account, now)

    def _end(self, outcome: Outcome) -> bool:
        """Book it now, or keep it; whatever else waited is booked with it."""
        try:
            with self._reaching():
                self._finish(outcome)
                self._flush()
        except (LedgerError, UsageMistake) as error:  # of another schema by now, for example
            self._waiting.append(outcome)  # a second time is a no-op, if it was booked after all
            LOG.warning("kept until the store is back (%d wait): %s", len(self._waiting), error)
            return False
        return True

    def _flush(self) -> None:
        """Book what waits, oldest first; what fails stays."""
        if not self._waiting:
            return
        with self._flushing:
            while self._waiting:
                self._finish(self._waiting[0])
                self._waiting.popleft()

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """The client's errors leave as ours.

        Raises:
            LedgerError: the store cannot be reached or used.
        """
        try:
            yield
        except self.lost as error:
            raise LedgerError(
                f"the ledger {self._where} cannot be used: {type(error).__name__}: {error}; "
                "nothing may be spent until it can, unless on_ledger_error='allow'"
            ) from error

    def _after_fork(self) -> None:
        """The child starts without connections; what waits is the parent's to book."""
        self._waiting = deque()
        self._flushing = threading.Lock()
        self._abandon()


_LEDGERS: WeakSet[StoreLedger] = WeakSet()


def _begin_anew_in_the_child() -> None:
    for ledger in list(_LEDGERS):
        ledger._after_fork()  # noqa: SLF001 - the same class


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_anew_in_the_child)


def _require_storable(key: str, model: str, accounts: tuple[Account, ...]) -> None:
    """Refuse text that some store cannot keep before anything depends on it.

    Raises:
        UsageMistake: it has a NUL character or half of a surrogate pair.
    """
    names = [name for account in accounts for name in (account.scope, account.key)]
    windows = [account.window for account in accounts if account.window is not None]
    text = "".join([key, model, *names, *windows])
    if not storable(text):
        raise UsageMistake(
            f"a ledger cannot keep {text!r}: keys, scopes and model names are text without NUL "
            "characters and lone surrogates"
        )


def _closed(found: Iterator[Entry]) -> None:
    """Give back what a generator holds that nobody reads to its end."""
    assert isinstance(found, Generator)
    with contextlib.suppress(ValueError):  # a thread still reads; then the collector closes it
        found.close()
