"""One answer on a server: asks in, steps out. Runs on the thread of the HTTP loop alone.

As long as every ask is "go on", its tokens come from the one completion that is streaming. Any
other ask closes that stream and opens another one with the new context, of which the server finds
all but the end in its cache. So an answer with c hand-overs takes 1 + c completions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from langchain_relay.engine.values import FREE, Rule, Step
from langchain_relay.errors import (
    ContextOverflowError,
    LocalModelError,
    RelayError,
    UsageMistake,
)
from langchain_relay.local.sampling import draw_seed
from langchain_relay.local.server.dialect import Asked, Cached, Ended, Item, Written
from langchain_relay.local.server.history import History, local_tail
from langchain_relay.local.text import begins, forbidden

if TYPE_CHECKING:
    from langchain_relay.engine.events import Decode, Feed
    from langchain_relay.local.sampling import Chosen
    from langchain_relay.local.server.dialect import Dialect, Facts
    from langchain_relay.local.server.transport import Http, Loop

RUN_AHEAD_STEPS = 64
"""Steps a stream may be ahead of its reader before it is closed: nobody may want them."""

RECENT_CHARS = 64
"""How far back a stop string may begin."""

BAN_TRIES = 32
"""How many tokens are banned one after the other at one place before it is given up."""

CHAR_TOKENS = 4
"""Tokens of one character, at most; a server sends nothing before it is complete."""


@dataclass(frozen=True, slots=True)
class Line:
    """What all answers on one server share."""

    loop: Loop
    http: Http
    dialect: Dialect
    facts: Facts


@dataclass(frozen=True, slots=True)
class Terms:
    """What one answer's requests have in common.

    Attributes:
        chosen: How to sample.
        stop_at: Strings behind which the server need not write on.
        slot: The slot of the server that keeps this answer's cache.
        headers: Sent with each of its completions.
    """

    chosen: Chosen
    stop_at: tuple[str, ...]
    slot: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Writer:
    """One answer.

    Args:
        line: The server.
        prompt: The rendered prompt.
        terms: What its requests have in common.
    """

    def __init__(self, line: Line, prompt: Sequence[Item], terms: Terms) -> None:
        self.history = History(prompt, line.dialect)
        self.cached_tokens = 0
        self.completions = 0
        self._line = line
        self._terms = terms
        self._rule = FREE
        self._task: asyncio.Task[None] | None = None
        self._ready: deque[Step | Ended | RelayError] = deque()
        self._last: Step | None = None
        self._waiting: Future[Step] | None = None
        self._mistake: RelayError | None = None
        self._open_grammar: str | None = None
        self._next_id = 0
        self._closed = False

    # --- what the session asks ------------------------------------------------------------------

    def decode(self, ask: Decode, future: Future[Step]) -> None:
        """Take `ask`; its step goes into `future`, now or later."""
        try:
            self._check(ask)
            if self._goes_on(ask):
                assert self._last is not None
                self.history.add(self._line.dialect.item(self._last.id, self._last.text))
                self._last = None  # it is in the context: nobody can go on from it twice
            else:
                self._check_grammar(ask.rule)
                self._hang_up()
                self.history.change(ask.append, ask.rewind)
        except RelayError as error:
            _fail(future, error)
            return
        self._waiting, self._rule = future, ask.rule
        self._answer()

    def feed(self, ask: Feed) -> None:
        """Note foreign text; what is streaming is of no use any more."""
        self._hang_up()
        try:
            self.history.change(ask.append, ask.rewind)
        except RelayError as error:
            self._mistake = error

    def close(self) -> None:
        """End the answer."""
        self._closed = True
        self._hang_up()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            _fail(waiting, LocalModelError("the session was closed while it decoded"))

    def _check(self, ask: Decode) -> None:
        if self._closed:
            raise LocalModelError("the session is closed")
        if self._waiting is not None and not self._waiting.cancelled():
            raise UsageMistake("a session decodes one token at a time; await the last one first")
        if self._mistake is not None:
            mistake, self._mistake = self._mistake, None
            raise mistake
        self._line.dialect.check(ask.rule)

    def _goes_on(self, ask: Decode) -> bool:
        """Whether `ask` wants the token behind the one given last, under the same rule."""
        return (
            self._last is not None
            and ask.append == (self._last.id,)
            and not ask.rewind
            and ask.rule == self._rule
            and self.history.settled
        )

    def _check_grammar(self, rule: Rule) -> None:
        if rule.grammar is not None and rule.grammar == self._open_grammar:
            raise UsageMistake(
                "a grammar holds from where its completion began, so text under it cannot be "
                "changed or interrupted; decode it in one go"
            )

    # --- steps to whoever waits -----------------------------------------------------------------

    def _answer(self) -> None:
        """Give the next step to the ask that waits, or see that one comes."""
        if self._waiting is None:
            return
        if not self._ready:
            if self._task is None:
                self._task = self._line.loop.start(self._stream(self._rule))
            return
        match self._ready[0]:
            case Ended(why="more"):
                self._hang_up()
                self._answer()
            case first:
                self._give(first)

    def _give(self, first: Step | Ended | RelayError) -> None:
        future, self._waiting = self._waiting, None
        if future is None or not future.set_running_or_notify_cancel():
            return
        self._ready.popleft()
        match first:
            case Step():
                self._last, self._open_grammar = first, self._rule.grammar
                future.set_result(first)
            case Ended():
                self._hang_up()
                self._open_grammar = None
                future.set_result(Step(first.id, "", eog=True))
            case RelayError():
                self._hang_up()
                future.set_exception(first)

    def _hang_up(self) -> None:
        """Close the stream, and forget what it wrote beyond the last step given."""
        self._ready.clear()
        self._last = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    # --- one completion -------------------------------------------------------------------------

    async def _stream(self, rule: Rule) -> None:
        """Turn one completion into steps, until it ends or is far enough ahead."""
        try:
            await self.history.settle()
            await self._write(list(self.history.items), rule)
        except RelayError as error:
            self._put(error)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of anything
            failure = LocalModelError(f"the client of the server failed: {error!r}")
            failure.__cause__ = error
            self._put(failure)

    async def _write(self, prefix: list[Item], rule: Rule) -> None:
        asked = self._asked(prefix, rule)
        own_stop = () if self._line.dialect.tells_stop else asked.stop
        if own_stop:
            # Such a server does not tell a stop string from the end of the turn: stop it from here.
            asked = replace(asked, stop=())
        parts, recent = forbidden(rule.ban), ""
        async with aclosing(self._completion(asked)) as saying:
            async for said in saying:
                if isinstance(said, Ended):
                    self._check_progress(said, recent)
                    self._put(said)
                    return
                if parts and begins(_tail(prefix, parts), said.text, parts):
                    break
                await self._take(said, prefix)
                recent = recent[-RECENT_CHARS:] + said.text
                if any(stop in recent for stop in own_stop) or self._far_ahead(rule):
                    self._put(Ended("more"))
                    return
            else:
                raise LocalModelError(f"{self._line.http.base_url} broke off its text")
        await self._replace(prefix, said, rule)

    def _far_ahead(self, rule: Rule) -> bool:
        return len(self._ready) > RUN_AHEAD_STEPS and rule.grammar is None

    def _check_progress(self, said: Ended, recent: str) -> None:
        if said.why == "more" and not recent:
            raise LocalModelError(f"{self._line.http.base_url} wrote nothing and gave no reason")

    async def _completion(self, asked: Asked) -> AsyncGenerator[Written | Ended, None]:
        """What the server says to one request."""
        line, first = self._line, self.completions == 0
        self.completions += 1
        reader, body = line.dialect.reader(), line.dialect.body(asked)
        async with line.http.events(line.dialect.path, body, headers=self._terms.headers) as events:
            async for event in events:
                for said in reader.read(event):
                    if not isinstance(said, Cached):
                        yield said
                    elif first:
                        self.cached_tokens = said.tokens
            for ended in reader.end():
                yield ended

    async def _replace(self, prefix: list[Item], offender: Written, rule: Rule) -> None:
        """Another token in place of one that begins a banned string; then go on behind it."""
        parts = forbidden(rule.ban)
        banned: list[int] = []
        for _ in range(BAN_TRIES):
            banned.append(await self._id_to_ban(offender, banned))
            asked = replace(self._asked(prefix, rule), banned=tuple(banned))
            said = await self._one(replace(asked, limit=1))
            if said == Ended("more"):
                said = await self._one(replace(asked, limit=min(CHAR_TOKENS, asked.limit)))
            if isinstance(said, Ended):
                self._check_progress(said, "")
                self._put(said)
                return
            if not begins(_tail(prefix, parts), said.text, parts):
                await self._take(said, prefix)
                self._put(Ended("more"))
                return
            offender = said
        raise LocalModelError(f"every token the server tried begins one of {list(rule.ban)}")

    async def _one(self, asked: Asked) -> Written | Ended:
        """The one token of a request."""
        async with aclosing(self._completion(asked)) as saying:
            async for said in saying:
                return said
        raise LocalModelError(f"{self._line.http.base_url} wrote nothing and gave no reason")

    async def _id_to_ban(self, offender: Written, banned: list[int]) -> int:
        ids = offender.ids or await self._line.dialect.ids(offender.text)
        # Of a server's several tokens the last one completes the banned string; of a text that was
        # tokenized here, the first one is what the server wrote at this place.
        token = ids[-1] if offender.ids else ids[0]
        if token in banned:
            raise LocalModelError(
                f"the server wrote {offender.text!r} again although its token was banned; it "
                f"ignores logit_bias, which a ban needs"
            )
        return token

    async def _take(self, said: Written, prefix: list[Item]) -> None:
        """Steps of what was written."""
        ids = await self._own_ids(said) if said.ids is None else said.ids
        texts = [said.text] if len(ids) == 1 else await self._line.dialect.texts(ids, said.text)
        for i, (token, text) in enumerate(zip(ids, texts, strict=True)):
            self.history.texts[token] = text
            prefix.append(self._line.dialect.item(token, text))
            signals = said.signals[i] if i < len(said.signals) else {}
            self._put(Step(token, text, signals=signals))

    async def _own_ids(self, said: Written) -> Sequence[int]:
        if self.history.items[0].ids:  # a server that takes ids withheld those of a character
            return await self._line.dialect.ids(said.text)
        first = self._next_id
        self._next_id += said.tokens
        return range(first, self._next_id)

    def _put(self, said: Step | Ended | RelayError) -> None:
        if asyncio.current_task() is not self._task:
            return  # hung up meanwhile
        self._ready.append(said)
        if not isinstance(said, Step):
            # It ends by itself. Cancelled while it closes its connection, it would leave it open.
            self._task = None
        self._answer()

    def _asked(self, prefix: Sequence[Item], rule: Rule) -> Asked:
        """The request for what follows `prefix`.

        Raises:
            ContextOverflowError: nothing fits behind it.
        """
        tokens, n_ctx = sum(item.tokens for item in prefix), self._line.facts.n_ctx
        if tokens >= n_ctx:
            raise ContextOverflowError(
                f"the conversation has {tokens} tokens and the context of one chat holds {n_ctx}, "
                f"one of them for what is written next; lower max_tokens or start the server with "
                f"a larger context",
                needed_tokens=tokens + 1,
                n_ctx=n_ctx,
            )
        return Asked(
            prefix=prefix,
            limit=n_ctx - tokens,
            chosen=self._terms.chosen,
            seed=draw_seed(self._terms.chosen.seed, tokens),
            stop=self._stop_at(rule, n_ctx - tokens),
            rule=rule,
            slot=self._terms.slot,
        )

    def _stop_at(self, rule: Rule, limit: int) -> tuple[str, ...]:
        stop_at = self._terms.stop_at
        # A string that is banned cannot be completed; and every token's own text is needed.
        # A grammar begins anew with every completion, so it must not end in between.
        if rule.ban or rule.grammar is not None:
            return ()
        # Text that may become a stop string is withheld, and never sent if the context ends there.
        return stop_at if limit > max(map(len, stop_at), default=0) else ()


def _tail(prefix: Sequence[Item], parts: Sequence[str]) -> str:
    return local_tail(prefix, max(map(len, parts)))


def _fail(future: Future[Step], error: RelayError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
