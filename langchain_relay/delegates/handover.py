"""One hand-over: redact, reserve, send, mend the seam, retry, fall back, settle. No I/O.

`hand_over` is a generator. It yields wire asks (`asks.py`), which `wire.py` performs, and the
answers the relay waits for (`Opened`, `SpanPiece`, `SpanEnd`). What one attempt costs is the
business of `books.py`, where its span is cut that of `bounds.py`.
Failure: each attempt goes on from what has arrived with the n that remains, first at the same
model, then at the next. A model whose host's breaker is open is passed over before anything is
reserved, and so is one that is not on this machine while the offline switch is on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tenacity import RetryCallState, wait_exponential, wait_random

from langchain_relay.delegates.asks import (
    Abandoned,
    Admit,
    Close,
    HandOver,
    Next,
    Prepare,
    Received,
    Send,
    Sleep,
)
from langchain_relay.delegates.books import Books
from langchain_relay.delegates.bounds import Bound, ByteBound, TokenBound
from langchain_relay.delegates.breaker import OPENS_AFTER
from langchain_relay.delegates.continuation import Characters, Seam
from langchain_relay.delegates.redaction import Redaction
from langchain_relay.delegates.terms import Member, Terms
from langchain_relay.engine.errors import (
    BudgetExceeded,
    CircuitOpen,
    DelegateError,
    DelegateTruncated,
    LedgerError,
    Offline,
)
from langchain_relay.engine.values import (
    Attempt,
    BudgetWarning,
    EndWhy,
    Opened,
    SpanEnd,
    SpanPiece,
    SpanRequest,
)
from langchain_relay.offline import VARIABLE

__all__ = ["DRAIN_PIECES", "DRAIN_S", "hand_over"]

DRAIN_PIECES = 64
DRAIN_S = 0.5
"""After a length cut: how far to read on, unseen, for the finish reason and the usage."""

LEAST_LEFT_S = 0.01
"""With less left of the deadline, no other model is asked."""

WITHHELD = frozenset(
    {
        *("content_filter", "refusal", "safety", "recitation", "blocklist"),
        *("prohibited_content", "spii", "prompt_blocked"),
    }
)
"""Finish reasons of OpenAI, Anthropic and Gemini that mean: not complete, and asking again will not
help."""

BROKEN_OFF = frozenset({"failed", "cancelled", "canceled", "incomplete", "error"})
"""Finish words (OpenAI Responses, OpenRouter) that mean: the provider did not get to the end."""

logger = logging.getLogger(__name__)

_BACKOFF = wait_exponential(multiplier=0.25, max=8.0) + wait_random(0, 0.25)


def hand_over(terms: Terms, request: SpanRequest) -> HandOver:
    """Carry out one hand-over; see the module's docstring for what it yields."""
    return _HandOver(terms, request).run()


@dataclass(frozen=True, slots=True)
class _View:
    """What the model that is asked is shown."""

    messages: tuple[Any, ...]
    draft: str


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
        self.books = Books(terms, request.call_id)
        self.trimmed = ""
        self.view = _View(terms.messages, request.draft)
        started = terms.clock()
        self.deadline = started + terms.timeout_s if terms.timeout_s is not None else float("inf")

    @property
    def member(self) -> Member:
        """Who is asked now."""
        return self.members[self.at]

    def run(self) -> HandOver:
        try:
            yield from self._enter()
        except Abandoned as abandoned:
            yield SpanEnd("cut", error=abandoned)
            return
        except (BudgetExceeded, LedgerError, Offline) as refused:
            yield SpanEnd("refused", error=refused)
            return
        except DelegateError as error:  # it starts, and fails at once
            why, abandoned_too = yield from self._opened()
            yield SpanEnd(why or "failed", error=abandoned_too or error)
            return
        why, gone = yield from self._opened()
        if why is None:
            yield (yield from self._attempts())
            return
        never_sent = DelegateError("never sent", sent=False)
        yield from self.books.settle(self.member, Received(), never_sent)
        yield SpanEnd(why, tuple(self.books.charges), error=gone)

    def _opened(self) -> Generator[Any, Any, tuple[EndWhy | None, Abandoned | None]]:
        """Say that it starts; returns why nobody waits for it any more, if so."""
        try:
            return (yield Opened(self.member.name, self.n)), None
        except Abandoned as abandoned:
            return "cut", abandoned

    def _attempts(self) -> Generator[Any, Any, SpanEnd]:
        while True:
            end, error = yield from self._attempt()
            if end is not None:
                return (yield from self._end(end, error))
            assert error is not None, "an attempt without an end has an error"
            failed: EndWhy = "truncated" if isinstance(error, DelegateTruncated) else "failed"
            left = self._left()
            pause_s = self._pause_s(error)
            if pause_s is None and not self._move_on():
                return (yield from self._end(failed, error))
            if left <= 0:
                return (yield from self._end("length", None))
            self.n = left
            try:
                if pause_s is not None:
                    yield Sleep(pause_s)
                yield from self._enter()
            except Abandoned as abandoned:
                return (yield from self._end("cut", abandoned))
            except (BudgetExceeded, LedgerError) as refused:
                return (yield from self._end("refused", refused))
            except DelegateError:  # nobody else can be asked: the error that led here says more
                return (yield from self._end(failed, error))

    # --- who is asked ---------------------------------------------------------------------------

    def _enter(self) -> Generator[Any, Any, None]:
        """Reserve at the first member, from this one on, that is up and that money allows.

        Raises:
            BudgetExceeded: a limit refuses; one in US dollars only if no cheaper member is left.
            LedgerError: the ledger cannot be reached, and that is a reason to refuse.
            DelegateError: the last member cannot be asked now.
        """
        while True:
            try:
                self._check_offline()
                self._check_circuit(self.terms.breakers.left_s)
                yield from self._prepare()
                self.n = yield from self.books.reserve(self.member, self._sending())
            except BudgetExceeded as error:
                if error.unit != "usd" or not self._move_on():
                    raise
            except DelegateError:
                if not self._move_on():
                    raise
            else:
                return

    def _prepare(self) -> Generator[Any, Any, None]:
        """Do what takes time and is not the host's fault, so it does not count as its time."""
        member, redaction = self.member, self.terms.redaction
        self.view = _View(self.terms.messages, self.request.draft + self.kept)
        vocabulary = member.vocabulary
        if vocabulary is not None and not vocabulary.loaded:
            with suppress(DelegateError):  # then it is not at hand
                yield from self._timed(vocabulary.load)
        if redaction is not None and not member.in_process:
            view = self.view
            self.view = yield from self._timed(lambda: _redacted(view, redaction))

    def _timed(self, work: Callable[[], Any]) -> Generator[Any, Any, Any]:
        began = self.terms.clock()
        done = yield Prepare(work)
        self.deadline += self.terms.clock() - began
        return done

    def _move_on(self) -> bool:
        """Turn to the next member; whether there is one, and time left to ask it."""
        left_s = self.deadline - self.terms.clock()
        if self.at + 1 == len(self.members) or left_s < LEAST_LEFT_S:
            return False
        self.at, self.tries = self.at + 1, 0
        return True

    def _check_offline(self) -> None:
        """Refuse a member that is not on this machine.

        Raises:
            Offline: the switch is on.
        """
        if self.terms.offline and self.member.leaves_machine:
            logger.warning("%s is not asked: %s is set", self.member.name, VARIABLE)
            raise Offline(
                f"offline: {self.member.name} is not on this machine, and {VARIABLE} is set; "
                f"unset it, or use a LocalDelegate",
                sent=False,
            )

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
            self.terms.breakers.answered(self.member.host, self.terms.clock())
        elif error.answered is False:
            now = self.terms.clock()
            self.terms.breakers.failed(self.member.host, now, received.sent_at)

    # --- one attempt ----------------------------------------------------------------------------

    def _attempt(self) -> Generator[Any, Any, tuple[EndWhy | None, Exception | None]]:
        """Send once. Returns why the span ended, or `None` and the error that may be retried."""
        self.tries += 1
        received = Received()
        seam = Seam(self.view.draft, self.member.delegate.mode, self._start)
        text = _Text(seam, self._bound())
        why: EndWhy | None = None
        error: DelegateError | Abandoned | None = None
        try:
            try:
                why = yield from self._stream(received, text)
            except DelegateError as caught:
                error = caught
                self._tell_breaker(received, error)
                if rest := self._piece(text.rest()):
                    why = yield rest
        except Abandoned as caught:
            why, error = "cut", caught
        self.trimmed += text.seam.trimmed
        for ending in (self.books.settle(self.member, received, error), _close(received, error)):
            try:
                yield from ending
            except Abandoned as caught:  # what was asked for is done, and nothing more may be sent
                why, error = "cut", caught
        return why, error

    @property
    def _start(self) -> int:
        """Where in the draft that part begins that is sent."""
        return self.terms.window.start(self.view.draft)

    def _bound(self) -> Bound:
        vocabulary = self.member.vocabulary
        return ByteBound(self.n) if vocabulary is None else TokenBound(self.n, vocabulary.encode)

    def _stream(self, received: Received, text: _Text) -> Generator[Any, Any, EndWhy]:
        yield Admit(self.deadline, self.member.rate_limiters)
        self._check_circuit(self.terms.breakers.send)
        received.sent_at = self.terms.clock()
        yield Send(self._sending(), self.member.delegate, received)
        received.sent = True
        while (delta := (yield Next(self.deadline))) is not None:
            if not received.answered:
                received.answered = True
                self.terms.breakers.answered(self.member.host, self.terms.clock())
            received.add(delta)
            if (piece := self._piece(text.push(delta.text))) and (why := (yield piece)):
                return (yield from self._hung_up(why, received))
            if text.bound.over:
                return (yield from self._hung_up("length", received))
            if text.seam.restart:
                return "cut"
        _check_finish(received.last.finish)
        hung_up: EndWhy | None = None
        if rest := self._piece(text.flush()):
            hung_up = yield rest
        over = text.bound.over or received.last.finish == "length"
        return hung_up or ("length" if over else "stop")

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
        start = self._start
        return Attempt(
            messages=self.view.messages,
            draft=self.view.draft[start:],
            max_tokens=self.n,
            stop=self.request.stop,
            timeout_s=None if left_s == float("inf") else max(0.001, left_s),
            model=self.member.model,
            clipped=start > 0,
            again=self.terms.again,
        )

    def _left(self) -> int:
        """What is left of n, counted as the model that was asked last counts, if that is known."""
        vocabulary = self.member.vocabulary
        count = self.terms.count if vocabulary is None else vocabulary.count
        with suppress(DelegateError):
            return self.request.max_tokens - count(self.kept)
        return self.request.max_tokens - self.terms.count(self.kept)

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

    def _end(self, why: EndWhy, error: Exception | None) -> Generator[Any, Any, SpanEnd]:
        warnings: list[BudgetWarning] = []
        with suppress(Abandoned):
            warnings = yield from self.books.warnings()
        return SpanEnd(
            why,
            tuple(self.books.charges),
            trimmed=self.trimmed,
            error=error,
            warnings=tuple(warnings),
            model=self.writer or self.member.name,
        )


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of one attempt: whole characters, its seam mended, and cut where n ends."""

    seam: Seam
    bound: Bound
    characters: Characters = field(default_factory=Characters)

    def push(self, text: str) -> str:
        return self.bound.push(self.seam.push(self.characters.push(text)))

    def flush(self) -> str:
        last = self.seam.push(self.characters.flush()) + self.seam.flush()
        return self.bound.push(last) + self.bound.flush()

    def rest(self) -> str:
        """What an attempt that broke off leaves; nothing, if it is its tokenizer that broke."""
        with suppress(DelegateError):
            return self.flush()
        return ""


def _close(received: Received, error: Exception | None) -> Generator[Any, Any, None]:
    yield Close(received, error)


def _check_finish(finish: str | None) -> None:
    """Take a stream's end for one only if the provider says so.

    Raises:
        DelegateError: it says that it did not get to the end.
    """
    if finish is None:
        raise DelegateTruncated("the stream ended without a finish reason", retryable=True)
    if finish.lower() in BROKEN_OFF:
        raise DelegateTruncated(f"the provider broke off: {finish!r}", retryable=True)
    if finish.lower() in WITHHELD:
        raise DelegateError(
            f"the provider withheld the rest: finish reason {finish!r}", retryable=False
        )


def _redacted(view: _View, redaction: Redaction) -> _View:
    return _View(redaction.messages(view.messages), redaction.draft(view.draft))
