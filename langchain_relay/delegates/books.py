"""The money of one hand-over: the worst case of each attempt is reserved, its real cost settled.

Settled at the reported cost where the provider's usage came with a finish reason, released where
nothing can be owed, else settled at the worst case and flagged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from langchain_relay.delegates.asks import Received
from langchain_relay.delegates.failures import building
from langchain_relay.delegates.terms import Member, Terms
from langchain_relay.engine.errors import BudgetExceeded, DelegateError
from langchain_relay.engine.ledger import Amount, Reservation
from langchain_relay.engine.values import Attempt, BudgetWarning, Charge

__all__ = ["EXPIRY_MARGIN_S", "Books"]

EXPIRY_MARGIN_S = 60.0
"""A reservation outlives its hand-over's deadline by this much before it counts as lost."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Books:
    """What one hand-over has reserved and spent.

    Attributes:
        terms: Ledger and limits.
        call_id: The hand-over.
        charges: One for each attempt that has ended.
    """

    terms: Terms
    call_id: str
    charges: list[Charge] = field(default_factory=list)
    _worst_nanousd: int | None = None  # of the attempt under way
    _reservation: Reservation | None = None

    def reserve(self, member: Member, attempt: Attempt) -> int:
        """Set the worst case of `attempt` aside; returns its n, which a token limit may lower.

        Raises:
            BudgetExceeded: a limit refuses.
            DelegateError: the request cannot be built.
        """
        n = attempt.max_tokens
        while True:
            self._worst_nanousd = _worst_nanousd(member, replace(attempt, max_tokens=n))
            try:
                self._reservation = self._reserved(Amount(self._worst_nanousd or 0, n, 1))
            except BudgetExceeded as error:
                if error.unit != "tokens" or not 0 < error.left < n:
                    raise
                n = error.left
            else:
                return n

    def _reserved(self, amount: Amount) -> Reservation | None:
        terms = self.terms
        if not terms.limits:
            return None
        deadline_s = terms.timeout_s if terms.timeout_s is not None else 24 * 3600.0
        now = terms.now()
        return terms.ledger.reserve(
            terms.limits,
            amount,
            key=f"{self.call_id}#{len(self.charges) + 1}",
            now=now,
            expires_at=now + deadline_s + EXPIRY_MARGIN_S,
        )

    def settle(self, member: Member, received: Received, error: Exception | None) -> None:
        """Book what the attempt cost, and note its charge."""
        charge = self._charge(member, received, error)
        self.charges.append(charge)
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return
        now = self.terms.now()
        if charge.released:
            self.terms.ledger.release(reservation, now=now)
            return
        tokens = reservation.amount.tokens if charge.output_tokens is None else charge.output_tokens
        actual = Amount(charge.cost_nanousd or 0, tokens, 1)
        self.terms.ledger.settle(reservation, actual, now=now)

    def warnings(self) -> Iterator[BudgetWarning]:
        """Limits that are past their warning share now and were not before."""
        terms = self.terms
        for limit in terms.limits:
            for warning in limit.warnings(terms.ledger.spent(limit.account, now=terms.now())):
                if (limit.account, warning.unit) not in terms.warned:
                    terms.warned.add((limit.account, warning.unit))
                    yield warning

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
        if last.finish is None or last.usage is None:
            return replace(charge, cost_nanousd=worst, estimated=True)
        usage = last.usage
        cost = price.cost_nanousd(usage) if price else None
        if (reported := _reported_nanousd(last.cost_usd)) is not None:
            cost = reported
            charge = replace(charge, price_source="provider")
        return replace(
            charge,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cost_nanousd=cost,
            overage_nanousd=max(0, (cost or 0) - worst) if worst is not None else 0,
        )


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


def _reported_nanousd(cost_usd: str | None) -> int | None:
    """The provider's own figure, if it gave one that makes sense."""
    from langchain_relay.prices import reported_nanousd

    if cost_usd is None:
        return None
    try:
        return reported_nanousd(cost_usd)
    except ValueError as error:
        logger.warning("%s; the price table is used instead", error)
        return None
