"""One hand-over: reserve, send, mend the seam, retry, fall back, settle. All rules and no I/O.

`hand_over` is a generator. It yields wire asks (`Admit`, `Send`, `Next`, `Close`, `Sleep`), which
`wire.py` performs, and the answers the relay waits for (`Opened`, `SpanPiece`, `SpanEnd`).
Money: one reservation per attempt at its worst case; settled at the reported cost where the
provider's usage came with a finish reason, released where nothing can be owed, else settled at the
worst case and flagged.
Failure: each attempt goes on from what has arrived with the n that remains, first at the same
model, then at the next. A model whose host's breaker is open is passed over before anything is
reserved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, wait_exponential, wait_random

from langchain_relay.delegates.breaker import BREAKERS, OPENS_AFTER, Breakers, key
from langchain_relay.delegates.continuation import Seam
from langchain_relay.delegates.failures import building
from langchain_relay.delegates.window import DraftWindow
from langchain_relay.engine.errors import (
    BudgetExceeded,
    CircuitOpen,
    DelegateError,
    DelegateTruncated,
)
from langchain_relay.engine.ledger import Account, Amount, Ledger, Limit, Reservation
from langchain_relay.engine.values import (
    Attempt,
    BudgetWarning,
    Charge,
    Counter,
    Delegate,
    Delta,
    EndWhy,
    Opened,
    SpanEnd,
    SpanPiece,
    SpanRequest,
)

if TYPE_CHECKING:
    from langchain_core.rate_limiters import BaseRateLimiter

    from langchain_relay.prices import Price

MAX_BYTES_PER_TOKEN = 8
"""Where the provider's tokenizer is not at hand, a span is cut at this many bytes per token."""

DRAIN_PIECES = 64
DRAIN_S = 0.5
"""After a length cut: how far to read on, unseen, for the finish reason and the usage."""

LEAST_LEFT_S = 0.01
"""With less left of the deadline, no other model is asked."""

EXPIRY_MARGIN_S = 60.0
"""A reservation outlives its hand-over's deadline by this much before it counts as lost."""

WITHHELD = frozenset(
    {"content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii"}
)
"""Finish reasons of OpenAI, Anthropic and Gemini that mean: not complete, and asking again will not
help."""

BROKEN_OFF = frozenset({"failed", "cancelled", "canceled", "incomplete", "error"})
"""Finish words (OpenAI Responses, OpenRouter) that mean: the provider did not get to the end."""

logger = logging.getLogger(__name__)

_BACKOFF = wait_exponential(multiplier=0.25, max=8.0) + wait_random(0, 0.25)


class Abandoned(Exception):
    """Thrown into a hand-over that nobody waits for any more."""


# --- wire asks ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """Wait for each rate limiter; a `DelegateTimeout` is thrown in at the deadline."""

    deadline: float
    rate_limiters: tuple[BaseRateLimiter, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Open the stream of `attempt` at `delegate`."""

    attempt: Attempt
    delegate: Delegate


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


Wire = Admit | Send | Next | Close | Sleep
HandOver = Generator[Wire | Opened | SpanPiece | SpanEnd, Any, None]


# --- what a hand-over is under ------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Terms:
    """What every hand-over of one answer shares.

    Attributes:
        delegate: Who is asked first.
        messages: The user's conversation, as LangChain messages.
        model: Per-call override of the delegate's model name.
        price: Price of that model, `None` if nobody knows it.
        reported_price: Price of the model a provider says it used, where `price` is unknown.
        limits: What the budgets leave; empty if there is none.
        ledger: Where spending is kept.
        timeout_s: For one hand-over with all its attempts; `None`: no deadline.
        max_retries: Further attempts after the first.
        count: Counts local tokens, for what is left of n after a cut stream.
        warned: Limits already warned of, by account and unit; shared by the hand-overs.
        rate_limiters: Each is waited for before an attempt is sent, under the deadline.
        fallbacks: Who is asked next, one after the other, where the one before is down.
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
    limits: tuple[Limit, ...]
    ledger: Ledger
    timeout_s: float | None
    max_retries: int
    count: Counter
    reported_price: Callable[[str], Price | None] = lambda _: None
    warned: set[tuple[Account, str]] = field(default_factory=set)
    rate_limiters: tuple[BaseRateLimiter, ...] = ()
    fallbacks: tuple[Member, ...] = ()
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


@dataclass(slots=True)
class Received:
    """What one attempt gave so far."""

    text: str = ""
    last: Delta = field(default_factory=Delta)
    sent: bool = False
    answered: bool = False  # anything came at all: then there was a response header

    def add(self, delta: Delta) -> None:
        """Keep the text and the latest of everything else."""
        self.text += delta.text
        self.note(delta)

    def note(self, delta: Delta) -> None:
        """Keep everything but the text."""
        known = {
            name: value
            for name in ("usage", "finish", "model", "cost_usd")
            if (value := getattr(delta, name)) is not None
        }
        self.last = replace(self.last, **known)


def hand_over(terms: Terms, request: SpanRequest) -> HandOver:
    """Carry out one hand-over; see the module's docstring for what it yields."""
    return _HandOver(terms, request).run()


class _HandOver:
    def __init__(self, terms: Terms, request: SpanRequest) -> None:
        self.terms = terms
        self.request = request
        self.n = request.max_tokens
        self.members = terms.members
        self.at = 0  # of the members, who is asked now
        self.tries = 0  # attempts at that member
        self.kept = ""  # text of all attempts, as it was passed on
        self.writer: str | None = None  # the model that wrote last
        self.charges: list[Charge] = []
        self.trimmed = ""
        self.worst_nanousd: int | None = None  # of the attempt under way
        started = terms.clock()
        self.deadline = started + terms.timeout_s if terms.timeout_s is not None else float("inf")

    @property
    def member(self) -> Member:
        """Who is asked now."""
        return self.members[self.at]

    def run(self) -> HandOver:
        try:
            reservation = self._enter()
        except BudgetExceeded as refused:
            yield SpanEnd("refused", error=refused)
            return
        except DelegateError as error:  # it starts, and fails at once
            why, abandoned = yield from self._opened()
            yield SpanEnd(why or "failed", error=abandoned or error)
            return
        why, abandoned = yield from self._opened()
        if why is None:
            yield (yield from self._attempts(reservation))
            return
        self._settle(reservation, Received(), DelegateError("never sent", sent=False))
        yield SpanEnd(why, tuple(self.charges), error=abandoned)

    def _opened(self) -> Generator[Any, Any, tuple[EndWhy | None, Abandoned | None]]:
        """Say that it starts; returns why nobody waits for it any more, if so."""
        try:
            return (yield Opened(self.member.name, self.n)), None
        except Abandoned as abandoned:
            return "cut", abandoned

    def _attempts(self, reservation: Reservation | None) -> Generator[Any, Any, SpanEnd]:
        while True:
            end, error = yield from self._attempt(reservation)
            if end is not None:
                return self._end(end, error)
            assert error is not None, "an attempt without an end has an error"
            failed: EndWhy = "truncated" if isinstance(error, DelegateTruncated) else "failed"
            pause_s = self._pause_s(error)
            if pause_s is None and not self._move_on():
                return self._end(failed, error)
            self.n = self.request.max_tokens - self.terms.count(self.kept)
            if self.n <= 0:
                return self._end("length", None)
            try:
                if pause_s is not None:
                    yield Sleep(pause_s)
                reservation = self._enter()
            except Abandoned as abandoned:
                return self._end("cut", abandoned)
            except BudgetExceeded as refused:
                return self._end("refused", refused)
            except DelegateError:  # nobody else can be asked: the error that led here says more
                return self._end(failed, error)

    # --- who is asked ---------------------------------------------------------------------------

    def _enter(self) -> Reservation | None:
        """Reserve at the first member, from this one on, that is up and that money allows.

        Raises:
            BudgetExceeded: a limit refuses; one in US dollars only if no cheaper member is left.
            DelegateError: the last member cannot be asked now.
        """
        while True:
            try:
                self._check_circuit(self.terms.breakers.left_s)
                return self._reserve(self.n)
            except BudgetExceeded as error:
                if error.unit != "usd" or not self._move_on():
                    raise
            except DelegateError:
                if not self._move_on():
                    raise

    def _move_on(self) -> bool:
        """Turn to the next member; whether there is one, and time left to ask it."""
        left_s = self.deadline - self.terms.clock()
        if self.at + 1 == len(self.members) or left_s < LEAST_LEFT_S:
            return False
        self.at, self.tries = self.at + 1, 0
        return True

    def _check_circuit(self, left_s: Callable[[str | None, float], float]) -> None:
        """Ask the breaker of the member's host, with `Breakers.left_s` or `.send`.

        Raises:
            CircuitOpen: no attempt may go out now.
        """
        if wait_s := left_s(self.member.host, self.terms.clock()):
            raise CircuitOpen(
                f"circuit_open: {self.member.host} gave no response to the last {OPENS_AFTER} or "
                f"more attempts; {self.member.name} can be asked again in {wait_s:.1f} s",
                retryable=True,
                sent=False,
            )

    def _tell_breaker(self, received: Received, error: Exception | None) -> None:
        if received.answered or not isinstance(error, DelegateError):
            return  # told at the first piece; or an attempt of which nobody saw the end
        if error.answered:
            self.terms.breakers.answered(self.member.host)
        elif error.answered is False:
            self.terms.breakers.failed(self.member.host, self.terms.clock())

    # --- one attempt ----------------------------------------------------------------------------

    def _attempt(
        self, reservation: Reservation | None
    ) -> Generator[Any, Any, tuple[EndWhy | None, Exception | None]]:
        """Send once. Returns why the span ended, or `None` and the error that may be retried."""
        self.tries += 1
        received = Received()
        draft = self.request.draft + self.kept
        seam = Seam(draft, self.member.delegate.mode, self.terms.window.start(draft))
        why: EndWhy | None = None
        error: DelegateError | Abandoned | None = None
        try:
            try:
                why = yield from self._stream(received, seam)
            except DelegateError as caught:
                error = caught
                self._tell_breaker(received, error)
                if rest := self._piece(seam.flush()):
                    why = yield rest
        except Abandoned as caught:
            why, error = "cut", caught
        self.trimmed += seam.trimmed
        self._settle(reservation, received, error)
        try:
            yield Close(received, error)
        except Abandoned as caught:  # all is booked already, and nothing more may be sent
            why, error = "cut", caught
        return why, error

    def _stream(self, received: Received, seam: Seam) -> Generator[Any, Any, EndWhy]:
        yield Admit(self.deadline, self.member.rate_limiters)
        self._check_circuit(self.terms.breakers.send)
        yield Send(self._sending(), self.member.delegate)
        received.sent = True
        limit_bytes = self.n * MAX_BYTES_PER_TOKEN
        while (delta := (yield Next(self.deadline))) is not None:
            if not received.answered:
                received.answered = True
                self.terms.breakers.answered(self.member.host)
            received.add(delta)
            text, over = _within(seam.push(delta.text), limit_bytes)
            limit_bytes -= len(text.encode(errors="replace"))
            if (piece := self._piece(text)) and (why := (yield piece)):
                return (yield from self._hung_up(why, received))
            if over:
                return (yield from self._hung_up("length", received))
            if seam.restart:
                return "cut"
        if received.last.finish is None:
            raise DelegateTruncated("the stream ended without a finish reason", retryable=True)
        if received.last.finish.lower() in BROKEN_OFF:
            raise DelegateTruncated(
                f"the provider broke off: {received.last.finish!r}", retryable=True
            )
        if received.last.finish.lower() in WITHHELD:
            raise DelegateError(
                f"the provider withheld the rest: finish reason {received.last.finish!r}",
                retryable=False,
            )
        ended: EndWhy = "length" if received.last.finish == "length" else "stop"
        hung_up: EndWhy | None = None
        if rest := self._piece(seam.flush()):
            hung_up = yield rest
        return hung_up or ended

    def _hung_up(self, why: EndWhy, received: Received) -> Generator[Any, Any, EndWhy]:
        """After a length cut read on, unseen, for the usage; any other cut closes at once."""
        if why != "length":
            return why
        deadline = min(self.deadline, self.terms.clock() + DRAIN_S)
        try:
            for _ in range(DRAIN_PIECES):
                delta = yield Next(deadline)
                if delta is None:
                    break
                received.note(delta)
        except DelegateError:
            pass  # the usage stays unknown, and the worst case is booked
        return why

    def _sending(self) -> Attempt:
        left_s = self.deadline - self.terms.clock()
        draft = self.request.draft + self.kept
        start = self.terms.window.start(draft)
        return Attempt(
            messages=self.terms.messages,
            draft=draft[start:],
            max_tokens=self.n,
            stop=self.request.stop,
            timeout_s=None if left_s == float("inf") else max(0.001, left_s),
            model=self.member.model,
            clipped=start > 0,
            again=self.terms.again,
        )

    def _piece(self, text: str) -> SpanPiece | None:
        """The text as it is passed on, if there is any; the next attempt goes on from it."""
        if not text:
            return None
        self.kept += text
        self.writer = self.member.name
        return SpanPiece(text, self.writer)

    def _pause_s(self, error: Exception) -> float | None:
        """Seconds until the next attempt at the same member; `None` if there is none."""
        if not isinstance(error, DelegateError) or not error.retryable:
            return None
        if self.tries > self.terms.max_retries:
            return None
        if self.terms.breakers.left_s(self.member.host, self.terms.clock()):
            return None
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # only its count is read
        state.attempt_number = self.tries
        pause_s = _BACKOFF(state) if error.retry_after_s is None else error.retry_after_s
        return pause_s if self.terms.clock() + pause_s < self.deadline else None

    def _end(self, why: EndWhy, error: Exception | None) -> SpanEnd:
        return SpanEnd(
            why,
            tuple(self.charges),
            trimmed=self.trimmed,
            error=error,
            warnings=tuple(self._warnings()),
            model=self.writer or self.member.name,
        )

    # --- money ----------------------------------------------------------------------------------

    def _worst_nanousd(self, n: int) -> int | None:
        """The most the next attempt can cost.

        Raises:
            DelegateError: the request cannot be built.
        """
        member = self.member
        if member.price is None:
            return None
        with building(member.name):
            bound = member.delegate.input_bound(replace(self._sending(), max_tokens=n))
        return member.price.worst_nanousd(bound, n) * (member.delegate.worst_attempts or 1)

    def _reserve(self, n: int) -> Reservation | None:
        """Set the worst case aside; a token limit first makes n smaller.

        Raises:
            BudgetExceeded: a limit refuses.
            DelegateError: the request cannot be built.
        """
        terms = self.terms
        if not terms.limits:
            self.worst_nanousd = self._worst_nanousd(n)
            return None
        key = f"{self.request.call_id}#{len(self.charges) + 1}"
        deadline_s = terms.timeout_s if terms.timeout_s is not None else 24 * 3600.0
        while True:
            now = terms.now()
            self.worst_nanousd = self._worst_nanousd(n)
            amount = Amount(self.worst_nanousd or 0, n, 1)
            try:
                reservation = terms.ledger.reserve(
                    terms.limits,
                    amount,
                    key=key,
                    now=now,
                    expires_at=now + deadline_s + EXPIRY_MARGIN_S,
                )
            except BudgetExceeded as error:
                if error.unit != "tokens" or not 0 < error.left < n:
                    raise
                n = error.left
            else:
                self.n = n
                return reservation

    def _settle(
        self,
        reservation: Reservation | None,
        received: Received,
        error: Exception | None,
    ) -> None:
        """Book what the attempt cost, and note its charge."""
        charge = self._charge(received, error)
        self.charges.append(charge)
        if reservation is None:
            return
        now = self.terms.now()
        if charge.released:
            self.terms.ledger.release(reservation, now=now)
            return
        tokens = reservation.amount.tokens if charge.output_tokens is None else charge.output_tokens
        actual = Amount(charge.cost_nanousd or 0, tokens, 1)
        self.terms.ledger.settle(reservation, actual, now=now)

    def _warnings(self) -> Iterator[BudgetWarning]:
        """Limits that are past their warning share now and were not before."""
        terms = self.terms
        for limit in terms.limits:
            for warning in limit.warnings(terms.ledger.spent(limit.account, now=terms.now())):
                if (limit.account, warning.unit) not in terms.warned:
                    terms.warned.add((limit.account, warning.unit))
                    yield warning

    def _charge(self, received: Received, error: Exception | None) -> Charge:
        last, price = received.last, self.member.price
        if price is None and last.model is not None:
            price = self.member.reported_price(last.model)
        charge = Charge(
            call_id=self.request.call_id,
            attempt=len(self.charges) + 1,
            model=self.member.name,
            price_source=price.source if price else None,
            outcome=last.finish or (type(error).__name__ if error else "cut"),
        )
        answered_by_error = isinstance(error, DelegateError) and not error.sent
        if not received.sent or (answered_by_error and not received.text):
            return replace(charge, cost_nanousd=0, released=True)
        worst = self.worst_nanousd
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


def _within(text: str, limit_bytes: int) -> tuple[str, bool]:
    """The part of `text` that fits into `limit_bytes`, and whether something was cut off."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return text, False
    return data[: max(0, limit_bytes)].decode(errors="ignore"), True


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
