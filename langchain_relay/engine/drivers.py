"""The two drivers: they answer the relay's asks, pass its events on, and close everything.

Time passes only in the session and in the span source. The two functions differ by `await` alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from langchain_relay.engine.events import Call, Decode, Event, Feed, Hangup, Pull
from langchain_relay.engine.loop import Answer, Flow
from langchain_relay.engine.values import LocalSession, SpanSource, Step

T = TypeVar("T")


@dataclass(slots=True)
class LocalWork:
    """How long an answer waited for its local model: reading what is new to it, and decoding.

    What is decoded ahead while somebody else is waited for costs no wait and is not in it, nor is
    the wait for a sequence. On an event loop the turns of other tasks may be.
    """

    clock: Callable[[], float] = time.monotonic
    waited_s: float = 0.0
    _began_s: float = 0.0

    @property
    def waited_ms(self) -> int:
        """Milliseconds, rounded up."""
        return math.ceil(self.waited_s * 1000)

    def __enter__(self) -> None:
        self._began_s = self.clock()

    def __exit__(self, *error: object) -> None:
        self.waited_s += self.clock() - self._began_s


def drive(
    flow: Flow, session: LocalSession, source: SpanSource, work: LocalWork | None = None
) -> Generator[Event, None, None]:
    """Run one answer to its end; yields its events. `work` is what it adds its waits to.

    Closing this iterator early gives the sequence back, closes the hosted stream and settles.
    """
    answer: Answer = None
    work = work or LocalWork()
    try:
        while True:
            try:
                out = flow.send(answer)
            except StopIteration:
                return
            answer = None
            match out:
                case Decode():
                    with work:
                        answer = session.decode(out).result()
                case Feed():
                    session.feed(out)
                case Call():
                    session.rest()
                    answer = source.open(out.request)
                case Pull():
                    answer = source.pull()
                case Hangup():
                    answer = source.hangup(out.why)
                case _:
                    yield out
    finally:
        flow.close()
        session.close()
        source.close()


async def adrive(
    flow: Flow, session: LocalSession, source: SpanSource, work: LocalWork | None = None
) -> AsyncGenerator[Event, None]:
    """Async twin of `drive`; closing is shielded from cancellation."""
    answer: Answer = None
    work = work or LocalWork()
    try:
        while True:
            try:
                out = flow.send(answer)
            except StopIteration:
                return
            answer = None
            match out:
                case Decode():
                    with work:
                        answer = await _stepped(session.decode(out))
                case Feed():
                    session.feed(out)
                case Call():
                    session.rest()
                    answer = await source.aopen(out.request)
                case Pull():
                    answer = await source.apull()
                case Hangup():
                    answer = await source.ahangup(out.why)
                case _:
                    yield out
    finally:
        flow.close()
        session.close()
        await shielded(source.aclose())


async def _stepped(future: Future[Step]) -> Step:
    """The step; without a turn of the event loop if it was decoded ahead."""
    return future.result() if future.done() else await asyncio.wrap_future(future)


def leased(lease: Future[LocalSession]) -> LocalSession:
    """Wait for a sequence; if the wait is broken off, it is not lost."""
    try:
        return lease.result()
    except BaseException:
        _give_back(lease)
        raise


async def aleased(lease: Future[LocalSession]) -> LocalSession:
    """Async twin of `leased`."""
    try:
        return await asyncio.wrap_future(lease)
    except BaseException:
        _give_back(lease)
        raise


def _give_back(lease: Future[LocalSession]) -> None:
    """Leave the queue, or return what was leased when nobody waited any more."""
    lease.cancel()

    def close(done: Future[LocalSession]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()

    lease.add_done_callback(close)


async def shielded(closing: Awaitable[T]) -> T:
    """Wait for `closing` to its end even if this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
