"""Performs a hand-over's wire asks and answers the drivers: the only place that waits for a host.

Two classes of one shape: `_Line` for threads, `_AsyncLine` for event loops. A sync stream is
pulled by a daemon thread through a bounded queue, because clients ignore their own timeouts when
a host sends keep-alives: the deadline is enforced from here, and so is the end of the connection.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_relay.delegates.asks import (
    Abandoned,
    Admit,
    Booking,
    Close,
    HandOver,
    Next,
    Prepare,
    Send,
    Sleep,
    Wire,
)
from langchain_relay.delegates.handover import hand_over
from langchain_relay.delegates.pump import Pump
from langchain_relay.delegates.terms import Terms
from langchain_relay.delegates.tracing import aopen_child, open_child, result, token
from langchain_relay.engine.drivers import shielded
from langchain_relay.engine.errors import (
    DelegateError,
    DelegateTimeout,
    LedgerError,
    RelayError,
)
from langchain_relay.engine.ledger import Ledger
from langchain_relay.engine.values import (
    Attempt,
    Delegate,
    Delta,
    EndWhy,
    Opened,
    SpanEnd,
    SpanPiece,
    SpanRequest,
)
from langchain_relay.runs import bound

LIMITER_POLL_S = 0.02
CLOSE_S = 1.0
"""How long an async stream may take to close before it is left alone."""

logger = logging.getLogger(__name__)


class HostedSide:
    """The hosted side of one answer: an engine `SpanSource` over a delegate.

    Args:
        terms: What every hand-over of this answer is under.
        parent: The answer's own run; hosted attempts become its children. `None`: no tracing.
    """

    def __init__(self, terms: Terms, parent: BaseRunManager | None) -> None:
        self._terms = terms
        self._parent = parent
        self.abandoned: SpanEnd | None = None
        """The end of a span that was open when the answer was closed."""
        self._span: tuple[HandOver, _Line] | None = None
        self._aspan: tuple[HandOver, _AsyncLine] | None = None

    # --- sync -----------------------------------------------------------------------------------

    def open(self, request: SpanRequest) -> Opened | SpanEnd:
        """See `SpanSource.open`."""
        self._span = hand_over(self._terms, request), _Line(self._terms, self._parent)
        out = self._run(None)
        assert isinstance(out, Opened | SpanEnd), "a hand-over opens or is refused"
        return out

    def pull(self) -> SpanPiece | SpanEnd:
        """See `SpanSource.pull`."""
        return _not_opened(self._run(None))

    def hangup(self, why: EndWhy) -> SpanEnd:
        """See `SpanSource.hangup`."""
        return _ended(self._run(why))

    def close(self) -> SpanEnd | None:
        """See `SpanSource.close`."""
        if self._span is not None:
            self.abandoned = _ended(self._run(Abandoned()))
        return self.abandoned

    def _run(self, answer: Any) -> Opened | SpanPiece | SpanEnd:
        """Resume the hand-over and perform its asks until it answers."""
        assert self._span is not None, "no span is open"
        flow, line = self._span
        while True:
            try:
                out = _resume(flow, answer)
            except BaseException:
                self._span = None  # its rules failed, or the ledger: nobody else would hang up
                line.hang_up()
                raise
            if isinstance(out, SpanEnd):
                self._span = None
            if isinstance(out, Opened | SpanPiece | SpanEnd):
                return out
            try:
                if isinstance(out, Booking):
                    answer = book(self._terms.ledger, out)
                else:
                    answer = line.perform(out)
            except RelayError as error:
                answer = error

    # --- async ----------------------------------------------------------------------------------

    async def aopen(self, request: SpanRequest) -> Opened | SpanEnd:
        """Async twin of `open`."""
        self._aspan = hand_over(self._terms, request), _AsyncLine(self._terms, self._parent)
        out = await self._arun(None)
        assert isinstance(out, Opened | SpanEnd), "a hand-over opens or is refused"
        return out

    async def apull(self) -> SpanPiece | SpanEnd:
        """Async twin of `pull`."""
        return _not_opened(await self._arun(None))

    async def ahangup(self, why: EndWhy) -> SpanEnd:
        """Async twin of `hangup`."""
        return _ended(await self._arun(why))

    async def aclose(self) -> SpanEnd | None:
        """Async twin of `close`."""
        if self._aspan is not None:
            self.abandoned = _ended(await self._arun(Abandoned()))
        return self.abandoned

    async def _arun(self, answer: Any) -> Opened | SpanPiece | SpanEnd:
        """Async twin of `_run`."""
        assert self._aspan is not None, "no span is open"
        flow, line = self._aspan
        while True:
            try:
                out = _resume(flow, answer)
            except BaseException:
                self._aspan = None  # its rules failed, or the ledger: nobody else would hang up
                await line.hang_up()
                raise
            if isinstance(out, SpanEnd):
                self._aspan = None
            if isinstance(out, Opened | SpanPiece | SpanEnd):
                return out
            try:
                if isinstance(out, Booking):
                    answer = await abook(self._terms.ledger, out)
                else:
                    answer = await line.perform(out)
            except RelayError as error:
                answer = error


def _resume(flow: HandOver, answer: Any) -> Wire | Opened | SpanPiece | SpanEnd:
    return flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)


def _not_opened(out: Opened | SpanPiece | SpanEnd) -> SpanPiece | SpanEnd:
    assert not isinstance(out, Opened), "a span opens once"
    return out


def _ended(out: Opened | SpanPiece | SpanEnd) -> SpanEnd:
    assert isinstance(out, SpanEnd), "a span that was hung up has ended"
    return out


def book(ledger: Ledger, booking: Booking) -> Any:
    """Carry out one operation of a ledger.

    Raises:
        BudgetExceeded: a limit refuses.
        LedgerError: the ledger cannot be reached or used.
    """
    try:
        return getattr(ledger, booking.operation)(*booking.args, **booking.kwargs)
    except RelayError:
        raise
    except Exception as error:
        raise _broken(ledger, error) from error


async def abook(ledger: Ledger, booking: Booking) -> Any:
    """Async twin of `book`. Cancelled, it is carried out all the same."""
    operation = getattr(ledger, f"a{booking.operation}")
    try:
        return await shielded(operation(*booking.args, **booking.kwargs))
    except RelayError:
        raise
    except Exception as error:
        raise _broken(ledger, error) from error


def _broken(ledger: Ledger, error: Exception) -> LedgerError:
    return LedgerError(f"{type(ledger).__name__} raised {type(error).__name__}: {error}")


# --- the sync line ------------------------------------------------------------------------------


class _Line:
    """One hand-over's streams, one after the other, on a thread of their own."""

    def __init__(self, terms: Terms, parent: BaseRunManager | None) -> None:
        self._terms = terms
        self._parent = parent
        self._pump: Pump[Delta] | None = None
        self._child: Any = None
        self._model = ""  # who was asked last

    def perform(self, ask: Wire) -> Any:
        match ask:
            case Prepare(work):
                return work()
            case Admit(deadline, limiters):
                self._admit(deadline, limiters)
                return None
            case Send(attempt, delegate, received):
                self._model = attempt.model or delegate.model
                if self._parent is not None:
                    self._child = open_child(self._parent, delegate, attempt)
                attempt = replace(attempt, run_manager=self._child)
                received.sent = True  # before its thread begins: Ctrl-C may come at any moment
                self._pump = Pump(partial(_stream, delegate, attempt))
                return None
            case Next(deadline):
                assert self._pump is not None, "Send comes before Next"
                delta = _next(self._pump, deadline - self._terms.clock())
                if self._child is not None and delta is not None and delta.text:
                    self._child.on_llm_new_token(delta.text, chunk=token(delta))
                return delta
            case Close():
                self._close(ask)
                return None
            case Sleep(seconds):
                time.sleep(seconds)
                return None

    def _admit(self, deadline: float, limiters: tuple[BaseRateLimiter, ...]) -> None:
        for limiter in limiters:
            while not limiter.acquire(blocking=False):
                time.sleep(_limiter_pause_s(deadline - self._terms.clock()))

    def hang_up(self) -> None:
        """End the stream that is open, if there is one."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.close()

    def _close(self, ask: Close) -> None:
        self.hang_up()
        child, self._child = self._child, None
        if child is None:
            return
        if isinstance(ask.error, DelegateError):
            child.on_llm_error(ask.error, response=result(ask.received, self._model))
        else:
            child.on_llm_end(result(ask.received, self._model))


def _stream(delegate: Delegate, attempt: Attempt) -> Iterator[Delta]:
    # What runs in here belongs to the attempt's run: a delegate may be a relay itself.
    with bound(attempt.run_manager):
        yield from delegate.stream(attempt)


def _next(pump: Pump[Delta], timeout_s: float) -> Delta | None:
    try:
        return pump.next(timeout_s)
    except queue.Empty:
        raise _timed_out() from None
    except DelegateError:
        raise
    except Exception as error:
        raise _unexpected(error) from error


def _timed_out() -> DelegateTimeout:
    # An attempt that used up the deadline is not retried: nothing is left of it. Whether the host
    # had begun to answer is known to who counted the pieces.
    message = "the hosted model did not finish within `timeout`"
    return DelegateTimeout(message, retryable=False, answered=False)


def _limiter_pause_s(left_s: float) -> float:
    """How long to wait before the rate limiter is asked again.

    Raises:
        DelegateTimeout: the deadline is over; nothing was sent.
    """
    if left_s <= 0:
        raise DelegateTimeout("the rate limiter admitted nothing within `timeout`", sent=False)
    return min(left_s, LIMITER_POLL_S)


def _unexpected(error: Exception) -> DelegateError:
    # A mistake of ours, such as a client of the wrong color, is found before anything is sent.
    sent = not isinstance(error, RelayError)
    message = f"the delegate raised {type(error).__name__}: {error}"
    return DelegateError(message, retryable=False, sent=sent)


# --- the async line -----------------------------------------------------------------------------


class _AsyncLine:
    """One hand-over's streams, one after the other, on the running event loop."""

    def __init__(self, terms: Terms, parent: BaseRunManager | None) -> None:
        self._terms = terms
        self._parent = parent
        self._stream: AsyncIterator[Delta] | None = None
        self._child: Any = None
        self._model = ""  # who was asked last

    async def perform(self, ask: Wire) -> Any:
        match ask:
            case Prepare(work):
                return await asyncio.to_thread(work)
            case Admit(deadline, limiters):
                await self._admit(deadline, limiters)
                return None
            case Send(attempt, delegate):
                self._model = attempt.model or delegate.model
                if self._parent is not None:
                    self._child = await aopen_child(self._parent, delegate, attempt)
                attempt = replace(attempt, run_manager=self._child)
                self._stream = delegate.astream(attempt)
                return None
            case Next(deadline):
                delta = await self._next(deadline - self._terms.clock())
                if self._child is not None and delta is not None and delta.text:
                    await self._child.on_llm_new_token(delta.text, chunk=token(delta))
                return delta
            case Close():
                await self._close(ask)
                return None
            case Sleep(seconds):
                await asyncio.sleep(seconds)
                return None

    async def _admit(self, deadline: float, limiters: tuple[BaseRateLimiter, ...]) -> None:
        for limiter in limiters:
            while not await limiter.aacquire(blocking=False):
                pause_s = _limiter_pause_s(deadline - self._terms.clock())
                await asyncio.sleep(pause_s)

    async def _next(self, timeout_s: float) -> Delta | None:
        assert self._stream is not None, "Send comes before Next"
        timeout = asyncio.timeout(None if timeout_s == float("inf") else timeout_s)
        try:
            async with timeout:
                with bound(self._child):
                    return await anext(self._stream, None)
        except DelegateError:
            raise
        except Exception as error:
            if timeout.expired():
                raise _timed_out() from None
            raise _unexpected(error) from error

    async def hang_up(self) -> None:
        """End the stream that is open, if there is one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await shielded(_closed(stream))

    async def _close(self, ask: Close) -> None:
        await self.hang_up()
        child, self._child = self._child, None
        if child is None:
            return
        if isinstance(ask.error, DelegateError):
            await child.on_llm_error(ask.error, response=result(ask.received, self._model))
        else:
            await child.on_llm_end(result(ask.received, self._model))


async def _closed(stream: AsyncIterator[Delta]) -> None:
    """Close a stream; one that will not close does not hold up or break the answer."""
    close = getattr(stream, "aclose", None)
    if close is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await close()
    except Exception:
        logger.warning("a hosted stream did not close well", exc_info=True)
