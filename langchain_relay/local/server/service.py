"""The places for answers on one server: who gets one when, and what is asked of the server once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import (
    ContextOverflowError,
    LocalModelError,
    RelayError,
    UsageMistake,
)
from langchain_relay.local.server.dialect import Dialect, Facts, ServerSettings
from langchain_relay.local.server.llama_server import LlamaServer
from langchain_relay.local.server.openai_completions import OpenAICompletions
from langchain_relay.local.server.session import ServerSession
from langchain_relay.local.server.transport import Http, Loop, NoSuchPage
from langchain_relay.local.server.writer import Line, Terms, Writer

if TYPE_CHECKING:
    from langchain_relay.engine.values import LocalSession, Turn
    from langchain_relay.local.sampling import Chosen
    from langchain_relay.local.server.model import CompletionServerModel


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """Somebody wants to write an answer."""

    model: CompletionServerModel
    turns: Sequence[Turn]
    chosen: Chosen
    open_assistant: bool
    headers: dict[str, str]
    future: Future[LocalSession]


@dataclass(frozen=True, slots=True)
class Places:
    """How many answers are written at once, and what their requests have in common."""

    n: int
    stop_at: tuple[str, ...]
    pin_slots: bool = True


class Service:
    """The places for answers on one server. Lives on the loop's thread but for `stop`."""

    def __init__(self, http: Http, settings: ServerSettings, places: Places) -> None:
        self.http = http
        self.loop = Loop()
        self._settings = settings
        self._places = places
        self._free = list(range(places.n))
        self._queue: deque[Opening] = deque()
        self._connecting: asyncio.Task[Line] | None = None
        self._writers: set[Writer] = set()

    @property
    def alive(self) -> bool:
        """Answers are still written."""
        return self.loop.alive

    def stop(self) -> None:
        """End everything; may be called from any thread and more than once."""
        self.loop.stop(self._end)

    async def count(self, text: str) -> int:
        """Tokens of `text` as a continuation."""
        return await (await self._line()).dialect.count(text)

    def begin(self, opening: Opening) -> None:
        """Queue `opening`, first come first served."""
        self._queue.append(opening)
        self._grant()

    def give_back(self, writer: Writer, place: int) -> None:
        """An answer is over: its place is free."""
        writer.close()
        if writer in self._writers:
            self._writers.remove(writer)
            self._vacate(place)

    def _vacate(self, place: int) -> None:
        heappush(self._free, place)
        self._grant()

    def _grant(self) -> None:
        while self._free and self._queue:
            opening = self._queue.popleft()
            if not opening.future.cancelled():
                self.loop.start(self._open(opening, heappop(self._free)))

    async def _open(self, opening: Opening, place: int) -> None:
        try:
            line = await self._line()
            prompt = await line.dialect.prompt(opening.turns, open_assistant=opening.open_assistant)
            _check_prompt(sum(item.tokens for item in prompt), line.facts.n_ctx)
        except asyncio.CancelledError:
            _fail(opening.future, LocalModelError("the local model was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of anything
            self._vacate(place)
            _fail(opening.future, _ours(error))
            return
        if not opening.future.set_running_or_notify_cancel():
            self._vacate(place)
            return
        slot = self._slot(line.facts, place)
        terms = Terms(opening.chosen, self._places.stop_at, slot, opening.headers)
        writer = Writer(line, prompt, terms)
        self._writers.add(writer)
        back = partial(self.loop.call, self.give_back, writer, place)
        opening.future.set_result(ServerSession(opening.model, line, writer, back))

    def _slot(self, facts: Facts, place: int) -> int | None:
        enough = facts.slots is not None and self._places.n <= facts.slots
        return place if self._places.pin_slots and enough else None

    async def _line(self) -> Line:
        """The connected server; whoever is first connects, and a failure is tried again."""
        task = self._connecting
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._connecting = self.loop.start(self._connect())
        line: Line = await asyncio.shield(task)
        return line

    async def _connect(self) -> Line:
        dialect: Dialect
        if self._settings.protocol != "openai":
            dialect = LlamaServer(self.http, self._settings)
            try:
                return Line(self.loop, self.http, dialect, await dialect.connect())
            except NoSuchPage:
                if self._settings.protocol == "llama.cpp":
                    raise
        dialect = OpenAICompletions(self.http, self._settings)
        return Line(self.loop, self.http, dialect, await dialect.connect())

    async def _end(self) -> None:
        closed = LocalModelError("the local model was closed")
        for writer in self._writers:
            writer.close()
        for opening in self._queue:
            _fail(opening.future, closed)
        self._queue.clear()
        await self.http.close()


def _check_prompt(tokens: int, n_ctx: int) -> None:
    if not tokens:
        raise UsageMistake("the prompt is empty; give at least one message")
    if tokens >= n_ctx:
        raise ContextOverflowError(
            f"the prompt has {tokens} tokens and the context of one chat holds {n_ctx}; shorten "
            f"the conversation or start the server with a larger context",
            needed_tokens=tokens + 1,
            n_ctx=n_ctx,
        )


def _ours(error: Exception) -> RelayError:
    if isinstance(error, RelayError):
        return error
    failure = LocalModelError(f"the server could not be used: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _fail(future: Future[Any], error: RelayError) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
