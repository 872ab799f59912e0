"""What the rules of a hand-over ask of the wire, and what an attempt has received so far.

`handover.py` yields these; `wire.py` performs them. Frozen values, no rules and no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import (
    Attempt,
    Charge,
    Delegate,
    Delta,
    Opened,
    SpanEnd,
    SpanPiece,
)
from langchain_relay.prices import reported_usage

if TYPE_CHECKING:
    from langchain_core.rate_limiters import BaseRateLimiter

__all__ = [
    "Abandoned",
    "Admit",
    "Booking",
    "Close",
    "HandOver",
    "Next",
    "Prepare",
    "Received",
    "Send",
    "Sleep",
    "Wire",
]


class Abandoned(Exception):
    """Thrown into a hand-over that nobody waits for any more."""


@dataclass(slots=True)
class Received:
    """What one attempt gave so far."""

    text: str = ""
    last: Delta = field(default_factory=Delta)
    sent: bool = False
    sent_at: float | None = None
    answered: bool = False  # anything came at all: then there was a response header
    charge: Charge | None = None  # once it is settled

    def add(self, delta: Delta) -> None:
        """Keep the text and the latest of everything else."""
        self.text += delta.text
        self.note(delta)

    def note(self, delta: Delta) -> None:
        """Keep everything but the text, and what no host can mean."""
        last = self.last
        name: Any = delta.model  # hosts put anything there
        self.last = replace(
            last,
            usage=reported_usage(delta.usage) or last.usage,
            finish=last.finish if delta.finish is None else delta.finish,
            model=name if isinstance(name, str) else last.model,
            cost_usd=last.cost_usd if delta.cost_usd is None else delta.cost_usd,
        )


@dataclass(frozen=True, slots=True)
class Booking:
    """One operation of the ledger, by its name; answered with what it returns.

    What it raises is thrown in: `BudgetExceeded` or `LedgerError`. Once begun it is carried out,
    also where nobody waits for it any more.
    """

    operation: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Do `work`, which may take a while and sends nothing; answered with what it returns."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Admit:
    """Wait for each rate limiter; a `DelegateTimeout` is thrown in at the deadline."""

    deadline: float
    rate_limiters: tuple[BaseRateLimiter, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Open the stream of `attempt` at `delegate`; from when it may go out, `received` says so."""

    attempt: Attempt
    delegate: Delegate
    received: Received = field(default_factory=Received)


@dataclass(frozen=True, slots=True)
class Next:
    """The stream's next `Delta`, or `None` at its end; a `DelegateError` is thrown in."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Close:
    """Close the stream and its child run; `received` is what it gave."""

    received: Received
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before the next attempt."""

    seconds: float


Wire = Booking | Prepare | Admit | Send | Next | Close | Sleep
HandOver = Generator[Wire | Opened | SpanPiece | SpanEnd, Any, None]
