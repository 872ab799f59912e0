"""The money of one hand-over: the worst case of each attempt is reserved, its real cost settled.

Settled at the reported cost where the provider's usage came with a finish reason, released where
nothing can be owed, else settled at the worst case and flagged.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from langchain_relay.budget import EVERYBODY
from langchain_relay.delegates.asks import Abandoned, Booking, Received
from langchain_relay.delegates.failures import building
from langchain_relay.delegates.terms import Member, Terms
from langchain_relay.engine.errors import BudgetExceeded, DelegateError, LedgerError
from langchain_relay.engine.ledger import (
    Account,
    Amount,
    Limit,
    Reservation,
)
from langchain_relay.engine.values import Attempt, BudgetWarning, Charge, Usage
from langchain_relay.prices import reported_nanousd

__all__ = ["EXPIRY_MARGIN_S", "Books"]

EXPIRY_MARGIN_S = 60.0
"""A reservation outlives its hand-over's deadline by this much before it counts as lost."""

logger = logging.getLogger(__name__)


EVERYTHING = Account("global", EVERYBODY)
"""Where spending is kept that no budget counts."""

_SHORTEN = frozenset({"tokens", "share"})
"""Units of which a limit first makes a hand-over shorter."""

T = TypeVar("T")
Booked = Generator[Any, Any, T]
"""Yields asks of the wire, and returns `T`."""


@dataclass(slots=True)
class Books:
    """What one hand-over has reserved and spent.

    Attributes:
        terms: Ledger and budgets.
        call_id: The hand-over.
        charges: One for each attempt that has ended.
    """

    terms: Terms
    call_id: str
    charges: list[Charge] = field(default_factory=list)
    _worst_nanousd: int | None = None  # of the attempt under way
    _reservation: Reservation | None = None
    _limits: tuple[Limit, ...] = ()  # that it was reserved under

    def reserve(self, member: Member, attempt: Attempt) -> Booked[int]:
        """Set the worst case of `attempt` aside; returns its n, which a token limit may lower.

        Raises:
            BudgetExceeded: a limit refuses.
            LedgerError: the ledger cannot be reached, and that is a reason to refuse.
            DelegateError: the request cannot be built.
        """
        n = attempt.max_tokens
        while True:
            self._worst_nanousd = _worst_nanousd(member, replace(attempt, max_tokens=n))
            try:
                yield from self._set_aside(member, Amount(self._worst_nanousd or 0, n, 1))
            except BudgetExceeded as error:
                if error.unit not in _SHORTEN or not 0 < error.left < n:
                    raise
                n = error.left
            else:
                return n

    def _set_aside(self, member: Member, amount: Amount) -> Booked[None]:
        terms = self.terms
        if not terms.allowances and not terms.records:
            return
        now = terms.now()
        deadline_s = terms.timeout_s if terms.timeout_s is not None else 24 * 3600.0
        accounts = [allowance.account(now) for allowance in terms.allowances]
        if terms.records:
            accounts.append(EVERYTHING)
        asked = Reservation(
            key=f"{self.call_id}#{len(self.charges) + 1}",
            accounts=tuple(dict.fromkeys(accounts)),
            amount=amount,
            expires_at=now + deadline_s + EXPIRY_MARGIN_S,
            model=member.name,
            at=now,
        )
        try:
            self._limits = yield from self._limits_at(now)
            yield from self._reserved(asked, now)
        except LedgerError:
            if terms.on_ledger_error == "refuse":
                raise
        self._reservation = asked  # one that the ledger has not heard of is settled all the same

    def _reserved(self, asked: Reservation, now: float) -> Booked[None]:
        facts = {"key": asked.key, "model": asked.model, "expires_at": asked.expires_at}
        try:
            yield Booking("reserve", (self._limits, asked.amount), {**facts, "now": now})
        except Abandoned:  # while it was made
            with suppress(LedgerError):
                yield Booking("release", (asked,), {"now": now})
            raise

    def _limits_at(self, now: float) -> Booked[tuple[Limit, ...]]:
        """What the budgets leave at this moment: windows begin and shares grow."""
        limits: list[Limit] = []
        for allowance in self.terms.allowances:
            written = 0
            if (account := allowance.written(now)) is not None:
                amount: Amount = yield Booking("spent", (account,), {"now": now})
                written = amount.tokens
            limits += allowance.limits(now, self.terms.max_tokens, written)
        return (*limits, Limit(EVERYTHING)) if self.terms.records else tuple(limits)

    def settle(self, member: Member, received: Received, error: Exception | None) -> Booked[None]:
        """Book what the attempt cost, and note its charge."""
        charge = received.charge = self._charge(member, received, error)
        self.charges.append(charge)
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return
        try:
            kept = yield self._settlement(charge, reservation)
        except LedgerError as lost:
            logger.warning("%s: what it cost is not in the ledger: %s", self.call_id, lost)
            kept = False
        if kept is False:
            self.charges[-1] = replace(charge, unbooked=True)

    def _settlement(self, charge: Charge, reservation: Reservation) -> Booking:
        now = self.terms.now()
        if charge.released:
            return Booking("release", (reservation,), {"now": now})
        tokens = reservation.amount.tokens if charge.output_tokens is None else charge.output_tokens
        actual = Amount(charge.cost_nanousd or 0, tokens, 1)
        unsure = charge.estimated or None in (charge.cost_nanousd, charge.output_tokens)
        return Booking("settle", (reservation, actual), {"now": now, "estimated": unsure})

    def warnings(self) -> Booked[list[BudgetWarning]]:
        """Limits that are past their warning share now and of which nobody was warned before."""
        found: list[BudgetWarning] = []
        now = self.terms.now()
        with suppress(LedgerError):
            for limit in self._limits:
                if limit.warn_at is None:
                    continue
                spent: Amount = yield Booking("spent", (limit.account,), {"now": now})
                for warning in limit.warnings(spent):
                    if (yield from self._is_first(limit.account, warning.unit, now)):
                        found.append(warning)  # noqa: PERF401 - it asks on the way
        return found

    def _is_first(self, account: Account, unit: str, now: float) -> Booked[bool]:
        """Whether nobody who shares the ledger was warned of this: of one call, who gets it?"""
        if (account, unit) in self.terms.warned:
            return False
        self.terms.warned.add((account, unit))
        if account.scope == "run":
            return True
        marker = Account("_warned", f"{account.scope}:{account.key}:{unit}", account.window)
        key = f"{self.call_id}!{unit}@{account.scope}:{account.key}:{account.window}"
        facts = {"key": key, "now": now, "expires_at": now + EXPIRY_MARGIN_S}
        try:
            limit, once = Limit(marker, calls=1), Amount(calls=1)
            reservation: Reservation = yield Booking("reserve", ((limit,), once), facts)
            yield Booking("settle", (reservation, once), {"now": now})
        except BudgetExceeded:
            return False
        return True

    def _charge(self, member: Member, received: Received, error: Exception | None) -> Charge:
        last, price = received.last, member.price
        if price is None and last.model is not None:
            price = member.reported_price(last.model)
        charge = Charge(
            call_id=self.call_id,
            attempt=len(self.charges) + 1,
            model=member.name,
            price_source=price.source if price else None,
            outcome=last.finish or (type(error).__name__ if error else "cut"),
        )
        answered_by_error = isinstance(error, DelegateError) and not error.sent
        if not received.sent or (answered_by_error and not received.text):
            return replace(charge, cost_nanousd=0, released=True)
        worst = self._worst_nanousd
        if last.finish is None:
            return replace(charge, cost_nanousd=worst, estimated=True)
        usage, reported = last.usage, _reported_nanousd(last.cost_usd)
        if reported is not None:
            charge = replace(charge, cost_nanousd=reported, price_source="provider")
        elif usage is None:
            return replace(charge, cost_nanousd=worst, estimated=True)
        elif price is not None:
            charge = replace(charge, cost_nanousd=price.cost_nanousd(usage))
        over = 0 if worst is None else max(0, (charge.cost_nanousd or 0) - worst)
        return _counted(replace(charge, overage_nanousd=over), usage)


def _worst_nanousd(member: Member, attempt: Attempt) -> int | None:
    """The most `attempt` can cost; `None`: nobody knows the price.

    Raises:
        DelegateError: the request cannot be built.
    """
    if member.price is None:
        return None
    with building(member.name):
        bound = member.delegate.input_bound(attempt)
    worst = member.price.worst_nanousd(bound, attempt.max_tokens)
    return worst * (member.delegate.worst_attempts or 1)


def _counted(charge: Charge, usage: Usage | None) -> Charge:
    """With what the provider counted."""
    if usage is None:
        return charge
    return replace(
        charge,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )


def _reported_nanousd(cost_usd: str | None) -> int | None:
    """The provider's own figure, if it gave one that makes sense."""
    if cost_usd is None:
        return None
    try:
        return reported_nanousd(cost_usd)
    except ValueError as error:
        logger.warning("%s; the price table is used instead", error)
        return None
