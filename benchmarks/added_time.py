"""What a hand-over adds to the time a bare client takes, with the same server and the same delays.

Both sides stream the same eight tokens from one loopback server in a process of its own, which
lets wait before every token. Two gaps are compared, call by call in turn:

first token: bare, from `ChatOpenAI.stream(...)` to its first text; relay, from the moment the
local model's last token before the hand-over is known to the first hosted text the user gets.
after the last token: bare, from its last text to the end of the stream; relay, from the user's
last hosted text to the question for the local model's next token. (What the local model then
needs to read the span and write on is its own time, and the topic `resume`.)

The local model is a real GGUF with one decode thread, since the server takes a core of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any

from langchain_openai import ChatOpenAI

from benchmarks.chat import EndedEarly, fresh_messages, local_model, relay_model, roomy
from benchmarks.measure import Bound, Row, Told, interleaved
from benchmarks.plan import Plan
from benchmarks.waits import EveryTokens
from benchmarks.worker import Worker
from langchain_relay import RelayChatModel
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import LocalModel, LocalSession, Sampling, Step, Turn
from tests.faults import Fault, FaultServer, Reply

SPAN = " one two three four five six seven eight"
SPAN_TOKENS = 8
PART = 6
DELAY_S = 0.005
BOUND = Bound(5.0, at="most")

FIRST, LAST = "first token", "after the last token"
Gaps = dict[str, float]
"""Milliseconds, by `FIRST` and `LAST`."""


@contextmanager
def hosted(delay_s: float) -> Iterator[Callable[[], str]]:
    """The server, in whose process this runs; yields what tells its address."""
    reply = Reply(SPAN, fault=Fault.SLOW_TOKENS, delay_s=delay_s, usage=(40, SPAN_TOKENS))
    with FaultServer(reply) as server:
        yield lambda: server.url


def measure(plan: Plan, told: Told) -> list[Row]:
    """Sync and async, each against its bare client."""
    plan = replace(plan, threads=1)
    tokens = 2 * (PART + SPAN_TOKENS)
    with (
        Worker(hosted, DELAY_S) as server,
        local_model(plan, n_ctx=roomy(tokens), max_concurrency=1) as local,
    ):
        chat = ChatOpenAI(
            model="gpt-5-mini", base_url=f"{server()}/v1", api_key="none", max_retries=0
        )
        watched = Watched(local)
        model = relay_model(
            watched,
            delegate=chat,
            policy=EveryTokens(PART, SPAN_TOKENS, max_calls=1),
            max_tokens=tokens,
            prices={"gpt-5-mini": ("0.25", "2")},
        )
        sides = _Sides(plan.added_calls, chat, model, watched)
        with asyncio.Runner() as runner:
            return _rows(plan, told, sides, runner)


def _rows(plan: Plan, told: Told, sides: _Sides, runner: asyncio.Runner) -> list[Row]:
    runs: dict[str, Callable[[], list[Gaps]]] = {
        "bare, sync": sides.bare,
        "relay, sync": sides.relay,
        "bare, async": lambda: runner.run(sides.abare()),
        "relay, async": lambda: runner.run(sides.arelay()),
    }
    for run in runs.values():
        run()
    found: dict[str, list[Gaps]] = {name: [] for name in runs}

    def turn(name: str) -> Callable[[], float]:
        def take() -> float:
            gaps = runs[name]()
            found[name].append({gap: median(one[gap] for one in gaps) for gap in (FIRST, LAST)})
            return found[name][-1][FIRST]

        return take

    interleaved({name: turn(name) for name in runs}, plan.rounds, told)
    return [row for colour in ("sync", "async") for row in _of(colour, found)]


def _of(colour: str, found: Mapping[str, list[Gaps]]) -> Iterator[Row]:
    bare, relay = found[f"bare, {colour}"], found[f"relay, {colour}"]
    for gap in (FIRST, LAST):
        b, r = ([one[gap] for one in side] for side in (bare, relay))
        added = tuple(y - x for x, y in zip(b, r, strict=True))
        yield Row("added_time", f"bare client, {gap}, {colour}", "ms", tuple(b))
        yield Row("added_time", f"relay, {gap}, {colour}", "ms", tuple(r))
        yield Row(
            "added_time",
            f"added by the relay, {gap}, {colour}",
            "ms",
            added,
            bound=BOUND,
            note=f"range {min(added):.2f} to {max(added):.2f} ms; each value is a difference of "
            f"medians within one round",
            facts={"token_delay_ms": DELAY_S * 1e3},
        )


# --- both sides -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sides:
    calls: int
    chat: ChatOpenAI
    model: RelayChatModel
    watched: Watched

    def bare(self) -> list[Gaps]:
        """As many streams of the bare client as an answer has hand-overs."""
        out = []
        for _ in range(self.calls):
            started, messages = _now(), fresh_messages()
            times = [_now() for chunk in self.chat.stream(messages) if chunk.text]
            out.append(_bare_gaps(started, times, _now()))
        return out

    async def abare(self) -> list[Gaps]:
        """Async twin of `bare`."""
        out = []
        for _ in range(self.calls):
            started, messages = _now(), fresh_messages()
            times = [_now() async for chunk in self.chat.astream(messages) if chunk.text]
            out.append(_bare_gaps(started, times, _now()))
        return out

    def relay(self) -> list[Gaps]:
        """As many answers, with one hand-over each."""
        out = []
        for _ in range(self.calls):
            chunks = self.model.stream(fresh_messages())
            seen = [(_now(), self.watched.asks) for chunk in chunks if chunk.text]
            out.append(self._gaps(seen))
        return out

    async def arelay(self) -> list[Gaps]:
        """Async twin of `relay`."""
        out = []
        for _ in range(self.calls):
            chunks = self.model.astream(fresh_messages())
            seen = [(_now(), self.watched.asks) async for chunk in chunks if chunk.text]
            out.append(self._gaps(seen))
        return out

    def _gaps(self, seen: Sequence[tuple[float, int]]) -> Gaps:
        timing = self.watched.last
        assert timing is not None, "an answer has opened a session"
        span = next(_spans(seen), None)
        asked = [at for at in timing.asked if span and at > span[1]]
        if span is None or not asked:
            raise EndedEarly("an answer without a hand-over, or that ended with it")
        first, last = span
        told = max(at for at in timing.stepped if at < first)
        return {FIRST: 1e3 * (first - told), LAST: 1e3 * (asked[0] - last)}


def _now() -> float:
    return time.perf_counter()


def _bare_gaps(started: float, times: Sequence[float], ended: float) -> Gaps:
    return {FIRST: 1e3 * (times[0] - started), LAST: 1e3 * (ended - times[-1])}


def _spans(seen: Sequence[tuple[float, int]]) -> Iterator[tuple[float, float]]:
    """When the first and the last piece of each hosted span came.

    Text for which the local model was not asked is hosted text, or comes with the first of it.
    """
    span: list[float] = []
    for (_, before), (at, asks) in pairwise([*seen, (0.0, -1)]):
        if asks == before:
            span.append(at)
        elif span:
            yield span[0], span[-1]
            span = []


# --- a session that notes when it was asked -------------------------------------------------------


@dataclass
class _Timing:
    inner: LocalSession
    asked: list[float] = field(default_factory=list)
    stepped: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, ask: Decode) -> Future[Step]:
        self.asked.append(_now())
        step = self.inner.decode(ask)
        step.add_done_callback(lambda _: self.stepped.append(_now()))
        return step

    def feed(self, ask: Feed) -> None:
        self.inner.feed(ask)


class Watched:
    """A local model that notes when its last session was asked and when it answered."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self.last: _Timing | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def asks(self) -> int:
        """How often the last session was asked for a token."""
        return len(self.last.asked) if self.last else 0

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self._model.fingerprint

    def count(self, text: str) -> int:
        return self._model.count(text)

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        opened = self._model.open(turns, sampling, open_assistant=open_assistant)
        timed: Future[LocalSession] = Future()
        self.last = _Timing(opened.result())
        timed.set_result(self.last)  # type: ignore[arg-type]  # it hands on what it lacks
        return timed
