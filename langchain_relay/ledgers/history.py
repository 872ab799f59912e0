"""Totals over a ledger's history, by day, model, scope or key. Reads a stream, keeps the totals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Literal

from langchain_relay.engine.ledger import Account, Amount, Entry

By = Literal["day", "model", "scope", "key"]

NOBODY = Account("", "")
"""For attempts without an account: they were only noted."""


@dataclass(frozen=True, slots=True)
class Total:
    """What the attempts of one group came to.

    Attributes:
        amount: Settled and expired attempts, and open ones at their worst case.
        estimated: The part of `amount` that no provider reported: open, expired, estimated.
        attempts: How many there were, released ones included.
    """

    amount: Amount = field(default_factory=Amount)
    estimated: Amount = field(default_factory=Amount)
    attempts: int = 0

    def with_entry(self, entry: Entry) -> Total:
        """This total and one attempt more."""
        unsure = entry.estimated or entry.state == "open"
        return Total(
            self.amount + entry.amount,
            self.estimated + entry.amount if unsure else self.estimated,
            self.attempts + 1,
        )


def totals(
    entries: Iterable[Entry], by: Sequence[By], *, zone: tzinfo = UTC
) -> dict[tuple[str, ...], Total]:
    """Totals by the values of `by`, sorted by them: `totals(ledger.entries(), ["day", "model"])`.

    An attempt that several accounts booked counts once in each of their scopes and keys, so totals
    by scope or key may add up to more than was spent; those by day and model do not. The package's
    own counters are left out.

    Args:
        entries: From `Ledger.entries`.
        by: Days are ISO dates of the reservation, keys are `scope:key`.
        zone: Whose days.
    """
    found: dict[tuple[str, ...], Total] = {}
    for entry in entries:
        day = _day(entry.at, zone) if "day" in by else ""
        accounts = [account for account in entry.accounts or (NOBODY,) if not account.internal]
        groups = (_group(entry, account, day, by) for account in accounts)
        for group in dict.fromkeys(groups):
            found[group] = found.get(group, Total()).with_entry(entry)
    return dict(sorted(found.items()))


def _day(at: float, zone: tzinfo) -> str:
    try:
        return datetime.fromtimestamp(at, tz=zone).date().isoformat()
    except (ValueError, OverflowError, OSError):  # whoever reserved has no right clock
        return "beyond the calendar"


def _group(entry: Entry, account: Account, day: str, by: Sequence[By]) -> tuple[str, ...]:
    values = {
        "day": day,
        "model": entry.model,
        "scope": account.scope,
        "key": f"{account.scope}:{account.key}",
    }
    return tuple(values[part] for part in by)
