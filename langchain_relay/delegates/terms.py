"""What the hand-overs of one answer share: who may be asked, at what price, within which limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from langchain_relay.budget import Allowance
from langchain_relay.delegates.breaker import BREAKERS, Breakers, key
from langchain_relay.delegates.redaction import Redaction
from langchain_relay.delegates.tokenizers import Vocabulary
from langchain_relay.delegates.window import DraftWindow
from langchain_relay.engine.ledger import Account, Ledger
from langchain_relay.engine.values import Counter, Delegate
from langchain_relay.offline import leaves_machine
from langchain_relay.prices import price_context

if TYPE_CHECKING:
    from langchain_core.rate_limiters import BaseRateLimiter

    from langchain_relay.prices import Price

__all__ = ["Member", "Terms", "priced_as"]


@dataclass(frozen=True, slots=True)
class Member:
    """One of the models a hand-over may ask.

    Attributes:
        delegate: Who is asked.
        price: Its price, `None` if nobody knows it.
        model: Per-call override of the delegate's model name.
        reported_price: Price of the model a provider says it used, where `price` is unknown.
        rate_limiters: Each is waited for before an attempt is sent, under the deadline.
        host: The name of its host's breaker; `None`: it has none.
    """

    delegate: Delegate
    price: Price | None
    model: str | None = None
    reported_price: Callable[[str], Price | None] = lambda _: None
    rate_limiters: tuple[BaseRateLimiter, ...] = ()
    host: str | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", key(getattr(self.delegate, "base_url", None)))

    @property
    def name(self) -> str:
        """The model that is asked."""
        return self.model or self.delegate.model

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer of the model that is asked; `None`: it is not at hand."""
        find = getattr(self.delegate, "vocabulary", None)
        found: Vocabulary | None = find(self.model) if find is not None else None
        return found

    @property
    def in_process(self) -> bool:
        """Whether it decodes in this process, so that nothing is sent anywhere."""
        return bool(getattr(self.delegate, "in_process", False))

    @property
    def leaves_machine(self) -> bool:
        """Whether what it is shown leaves this machine."""
        address = getattr(self.delegate, "base_url", None)
        return not self.in_process and leaves_machine(address)


@dataclass(frozen=True, slots=True)
class Terms:
    """What every hand-over of one answer shares.

    Attributes:
        delegate: Who is asked first.
        messages: The user's conversation, as LangChain messages.
        model: Per-call override of the delegate's model name.
        price: Price of that model, `None` if nobody knows it.
        reported_price: Price of the model a provider says it used, where `price` is unknown.
        allowances: The budgets; empty if there is none.
        ledger: Where spending is kept.
        timeout_s: For one hand-over with all its attempts; `None`: no deadline.
        max_retries: Further attempts after the first.
        count: Counts local tokens, for what is left of n where the model's own tokenizer is not
            at hand.
        max_tokens: What the answer may write, both writers together.
        records: Spending is kept without a budget too.
        on_ledger_error: What becomes of hand-overs while the ledger cannot be reached.
        warned: Limits already warned of, by account and unit; shared by the hand-overs.
        rate_limiters: Each is waited for before an attempt is sent, under the deadline.
        fallbacks: Who is asked next, one after the other, where the one before is down.
        redaction: What conversation and draft go through before they leave; `None`: nothing.
        offline: Nobody is asked whose model is not on this machine.
        breakers: Of the hosts; by default the process's.
        window: Says how much of the draft is sent; shared by the hand-overs.
        again: A later hand-over of this answer is likely.
        clock: Seconds for deadlines and breakers; never goes back.
        now: Wall-clock seconds, for the ledger.
    """

    delegate: Delegate
    messages: tuple[Any, ...]
    model: str | None
    price: Price | None
    allowances: tuple[Allowance, ...]
    ledger: Ledger
    timeout_s: float | None
    max_retries: int
    count: Counter
    reported_price: Callable[[str], Price | None] = lambda _: None
    max_tokens: int = 0
    records: bool = False
    on_ledger_error: Literal["refuse", "allow"] = "refuse"
    warned: set[tuple[Account, str]] = field(default_factory=set)
    rate_limiters: tuple[BaseRateLimiter, ...] = ()
    fallbacks: tuple[Member, ...] = ()
    redaction: Redaction | None = None
    offline: bool = False
    breakers: Breakers = BREAKERS
    window: DraftWindow = field(default_factory=DraftWindow)
    again: bool = True
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time

    @property
    def members(self) -> tuple[Member, ...]:
        """All who may be asked, in order."""
        first = Member(
            self.delegate, self.price, self.model, self.reported_price, self.rate_limiters
        )
        return (first, *self.fallbacks)


def priced_as(delegate: Delegate) -> dict[str, Any]:
    """What a price is looked up by beside the model's name: `PriceBook.find`'s arguments.

    The service tier is the one that is asked for; what a request was served at, no delegate tells.
    """
    fingerprint = delegate.fingerprint
    tier = _service_tier(fingerprint)
    return {
        "provider": getattr(delegate, "provider", None),
        "base_url": fingerprint.get("base_url"),
        "context": price_context(service_tier=tier),
    }


def _service_tier(fingerprint: Mapping[str, Any]) -> str | None:
    """A field of the chat model, or among what it adds to its requests, which wins."""
    settings = fingerprint.get("settings") or {}
    added = (fingerprint, settings)
    places = [one.get(key) for one in added for key in ("extra_body", "model_kwargs")]
    told = (place.get("service_tier") for place in (*places, settings) if place)
    return next((tier for tier in told if isinstance(tier, str)), None)
