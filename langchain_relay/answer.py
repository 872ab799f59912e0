"""One answer from its first token to its last chunk.

    Answer.plan → lease a sequence → relay() under drive/adrive → events to handlers and to chunks

`chunks` and `achunks` differ by `await` alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_core.outputs import ChatGenerationChunk

from langchain_relay.delegates.asks import Booking
from langchain_relay.delegates.wire import HostedSide, abook, book
from langchain_relay.engine.drivers import LocalWork, adrive, aleased, drive, leased
from langchain_relay.engine.errors import RelayError
from langchain_relay.engine.events import (
    CallFailed,
    Event,
    Finished,
    SpanClosed,
    SpanOpened,
    TextAdded,
)
from langchain_relay.engine.ledger import Amount, Reservation
from langchain_relay.engine.loop import Bounds, Flow, relay
from langchain_relay.engine.policy import AnswerContext, Policy
from langchain_relay.engine.values import (
    LocalModel,
    LocalSession,
    Sampling,
    SpanEnd,
    Turn,
    Usage,
)
from langchain_relay.errors import ContextOverflowError, translated
from langchain_relay.messages import AnswerWriter, text_of
from langchain_relay.runs import aemit, emit
from langchain_relay.schema import CALL_FAILED, SCHEMA_VERSION, EventName, wire_events

if TYPE_CHECKING:
    from langchain_core.callbacks.manager import BaseRunManager

    from langchain_relay.delegates.terms import Terms
    from langchain_relay.prices import LocalPrice


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is decided before the first token.

    Attributes:
        local: The local model.
        turns: Its view of the conversation, teaching included.
        sampling: How it samples.
        policy: Who writes next.
        bounds: What the answer may use; the lease adds what its context has left.
        terms: What hand-overs are under.
        end_on_delegate_stop: A hosted `stop` ends the answer.
        run: The answer's own run, if LangChain told us.
        answer_id: Its run's id, made unique; prefix of call ids and key of what is counted for it
            alone.
        local_price: What local work costs; `None`: it has no price.
    """

    local: LocalModel
    turns: tuple[Turn, ...]
    sampling: Sampling
    policy: Policy
    bounds: Bounds
    terms: Terms
    end_on_delegate_stop: bool
    run: BaseRunManager | None
    answer_id: str
    local_price: LocalPrice | None = None

    def lease(self) -> Future[LocalSession]:
        """Queue for a sequence of the local model."""
        return self.local.open(self.turns, self.sampling)

    def flow(self, session: LocalSession) -> Flow:
        """The relay over a leased sequence."""
        context = AnswerContext(session.count, session.thinking, self.end_on_delegate_stop)
        bounds = replace(
            self.bounds,
            context_left=session.context_left,
            max_tokens=min(self.bounds.max_tokens, session.context_left),
        )
        watch = self.policy.watch(context)
        return relay(watch, bounds, count=session.count, answer_id=self.answer_id)

    def terms_in(self, session: LocalSession) -> Terms:
        """The terms, with what the answer may write in this context."""
        return replace(self.terms, max_tokens=min(self.bounds.max_tokens, session.context_left))

    def last_bookings(self, written: int) -> Iterator[Booking]:
        """The answer is over: what the ledger has to know, and what it may forget.

        Args:
            written: Tokens of both writers.
        """
        now = self.terms.now()
        for allowance in self.terms.allowances:
            account = allowance.account(now)
            if allowance.once:
                yield Booking("close", (account,), {})
            elif (counter := allowance.written(now)) is not None and written:
                key = f"{self.answer_id}={account.scope}:{account.window}"
                counted = Reservation(key, (counter,), Amount(tokens=written), now, at=now)
                yield Booking("settle", (counted, counted.amount), {"now": now})


def chunks(answer: Answer) -> Generator[ChatGenerationChunk, None, None]:
    """Write the answer; yields its chunks. Closing the iterator early gives everything back."""
    with translated(), closing(leased(answer.lease())) as session:
        source = HostedSide(answer.terms_in(session), answer.run)
        told = _Told(answer, _checked(session))
        try:
            with closing(drive(answer.flow(session), session, source, told.work)) as events:
                for event in events:
                    for notice in told.notices(event):
                        emit(answer.run, *notice)
                    if (chunk := told.chunk(event)) is not None:
                        yield chunk
        finally:
            try:
                for notice in told.unfinished(source.abandoned):
                    emit(answer.run, *notice)
            finally:
                for booking in answer.last_bookings(told.written):
                    with _kept_going():
                        book(answer.terms.ledger, booking)


async def achunks(answer: Answer) -> AsyncGenerator[ChatGenerationChunk, None]:
    """Async twin of `chunks`."""
    with translated(), closing(await aleased(answer.lease())) as session:
        source = HostedSide(answer.terms_in(session), answer.run)
        told = _Told(answer, _checked(session))
        try:
            async with aclosing(adrive(answer.flow(session), session, source, told.work)) as events:
                async for event in events:
                    for notice in told.notices(event):
                        await aemit(answer.run, *notice)
                    if (chunk := told.chunk(event)) is not None:
                        yield chunk
        finally:
            try:
                for notice in told.unfinished(source.abandoned):
                    await aemit(answer.run, *notice)
            finally:
                for booking in answer.last_bookings(told.written):
                    with _kept_going():
                        await abook(answer.terms.ledger, booking)


@contextmanager
def _kept_going() -> Iterator[None]:
    """A ledger that is away breaks no answer."""
    try:
        yield
    except RelayError as error:
        logger.warning("the ledger was not told the end of an answer: %s", error)


def _checked(session: LocalSession) -> LocalSession:
    if session.context_left < 1:
        n_ctx = session.prompt_tokens + session.context_left
        raise ContextOverflowError(
            f"the prompt fills the context: {session.prompt_tokens} tokens, n_ctx={n_ctx}; raise "
            f"n_ctx or shorten the conversation",
            needed_tokens=session.prompt_tokens + 1,
            n_ctx=n_ctx,
        )
    return session


# --- what the user is told ----------------------------------------------------------------------

Notice = tuple[EventName, dict[str, Any]]
"""An event as handlers get it: its name and its fields."""


@dataclass(slots=True)
class _Told:
    """Turns events into chunks and remembers a hand-over whose end was not told yet."""

    answer: Answer
    session: LocalSession
    opened: SpanOpened | None = None
    work: LocalWork = field(default_factory=LocalWork)
    writer: AnswerWriter = field(init=False)

    def __post_init__(self) -> None:
        self.writer = AnswerWriter(self.answer.local.name)

    def notices(self, event: Event) -> Iterable[Notice]:
        """What handlers are told, after what is open was remembered: a handler may raise."""
        if isinstance(event, TextAdded):
            return ()  # nearly every event, and there is a decode to keep up with
        if isinstance(event, SpanOpened):
            self.opened = event
        elif isinstance(event, SpanClosed | CallFailed):
            self.opened = None
        return wire_events(event)

    def chunk(self, event: Event) -> ChatGenerationChunk | None:
        """What the user is told, if anything."""
        return self._last(event) if isinstance(event, Finished) else self.writer.chunk(event)

    @property
    def written(self) -> int:
        """Tokens of both writers so far."""
        return self.writer.local_tokens + self.writer.delegated_tokens

    def unfinished(self, end: SpanEnd | None) -> list[Notice]:
        """The end of a hand-over during which the answer was closed: `failed`, and charged."""
        if self.opened is None or end is None:
            return []
        opened, self.opened = self.opened, None
        failed = CallFailed(opened.request, end.model or opened.model, opened.n, end)
        return [
            (name, {**data, "error": "the answer was closed"} if name == CALL_FAILED else data)
            for name, data in wire_events(failed)
        ]

    def _last(self, event: Finished) -> ChatGenerationChunk:
        return self.writer.last(
            prompt_tokens=self.session.prompt_tokens,
            cached_tokens=self.session.cached_tokens,
            why=event.why,
            scalars={
                "schema_version": SCHEMA_VERSION,
                "delegate_only_cost_nanousd": self._delegate_only_nanousd(),
                **self._local_cost(),
            },
        )

    def _local_cost(self) -> dict[str, int]:
        """How long the local model worked and what that costs, if it has a price."""
        price, work_ms = self.answer.local_price, self.work.waited_ms
        if price is None:
            return {}
        return {"local_ms": work_ms, "local_cost_nanousd": price.cost_nanousd(work_ms)}

    def _delegate_only_nanousd(self) -> int | None:
        """What the hosted model alone would have cost, with local counts for its tokens."""
        terms = self.answer.terms
        if terms.price is None:
            return None
        question = sum(self.session.count(text_of(message)) for message in terms.messages)
        return terms.price.cost_nanousd(Usage(question, self.written))
