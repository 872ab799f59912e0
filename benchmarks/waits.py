"""Eight chats that wait for a hosted model twice each, against a lock held over the wait.

Every answer: 16 local tokens, a wait, a span of 8 tokens, 16 local tokens, a wait, a span, 16
local tokens. A policy of its own hands over at these places, so the work is the same every time.
The eight conversations are the same in every round and were begun before the first: what is timed
is a conversation's next answer, not its prompt, as far as the engine keeps what it evaluated. The
raw loop does.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.chat import (
    EndedEarly,
    Messages,
    as_turns,
    fresh_messages,
    local_model,
    relay_model,
    roomy,
)
from benchmarks.measure import Bound, Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw, batched
from benchmarks.worker import Worker
from langchain_relay import RelayChatModel, relay_report
from langchain_relay.engine.policy import AnswerContext, Handoff, Held, Keep, Watch
from langchain_relay.engine.values import Attempt, Delta, Step
from langchain_relay.policies.watch import LocalWatch
from langchain_relay.testing import ScriptedDelegate

CHATS = 8
PART = 16
SPANS = 2
SPAN = " one two three four five six seven eight"
SPAN_TOKENS = 8
LOCAL_TOKENS = PART * (SPANS + 1)
TOKENS = LOCAL_TOKENS + SPANS * SPAN_TOKENS

LOCK_BOUND = Bound(3.0)
ENGINE_BOUND = Bound(0.93)
BOUND_AT_S = 0.3

RELAY, LOCK, RAW = "relay", "a lock held over the wait", "raw batched loop"


@dataclass(frozen=True, slots=True)
class EveryTokens:
    """Hands over after every `part` local tokens, for `span_tokens` tokens."""

    part: int = PART
    span_tokens: int = SPAN_TOKENS
    max_calls: int | None = SPANS
    hide: bool = False
    max_span_tokens: int | None = None
    taught: bool = False

    def watch(self, context: AnswerContext) -> Watch:
        del context
        return _Counting(self)


class _Counting(LocalWatch):
    def __init__(self, policy: EveryTokens) -> None:
        self._policy = policy
        self._steps = 0

    def step(self, step: Step, held: str) -> Keep | Handoff:
        del step, held
        self._steps += 1
        if self._steps % self._policy.part:
            return Keep()
        held_tokens: Held = "hide" if self._policy.hide else "show"
        return Handoff(self._policy.span_tokens, cause="benchmark", held=held_tokens)


class Waiting(ScriptedDelegate):
    """A hosted model that thinks for `wait_s` seconds and then answers all at once."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(SPAN)
        self._wait_s = wait_s

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        del attempt
        time.sleep(self._wait_s)
        yield Delta(SPAN, finish="length", model=self.model)

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        del attempt
        await asyncio.sleep(self._wait_s)
        yield Delta(SPAN, finish="length", model=self.model)


def measure(plan: Plan, told: Told) -> list[Row]:
    """All three sides at every wait."""
    with Worker(relay_chats, plan) as relay, Worker(raw_chats, plan) as raw:
        return [row for wait_s in plan.waits_s for row in _at(plan, told, wait_s, relay, raw)]


def _at(plan: Plan, told: Told, wait_s: float, relay: Worker, raw: Worker) -> list[Row]:
    sides = {
        RELAY: partial(relay, wait_s),
        LOCK: partial(relay, wait_s, "locked"),
        RAW: partial(raw, wait_s),
    }
    sides[RELAY]()
    sides[RAW]()
    rates = interleaved(sides, plan.rounds, lambda turn: told(f"{wait_s:g} s waits, {turn}"))
    judged = wait_s == BOUND_AT_S

    def row(name: str, against: str, bound: Bound | None) -> Row:
        return Row(
            "waits",
            f"{name}, {CHATS} chats, {SPANS} waits of {1000 * wait_s:.0f} ms",
            "tokens/s",
            rates[name],
            against=against,
            ratios=ratios(rates[name], rates[against]) if against else (),
            bound=bound if judged else None,
            facts={
                "side": name,
                "chats": CHATS,
                "wait_s": wait_s,
                "spans": SPANS,
                "span_tokens": SPAN_TOKENS,
                "local_tokens": LOCAL_TOKENS,
            },
        )

    return [
        row(LOCK, "", None),
        row(RAW, LOCK, None),
        row(RELAY, LOCK, LOCK_BOUND),
        row(RELAY, RAW, ENGINE_BOUND),
    ]


@contextmanager
def relay_chats(plan: Plan) -> Iterator[Callable[..., float]]:
    """`RelayChatModel.invoke` on eight threads; locked, one answer after the other."""
    lock = threading.Lock()
    conversations = [fresh_messages() for _ in range(CHATS)]

    def turn(wait_s: float, locked: str = "") -> float:
        gate = lock if locked else nullcontext()
        model = relay_model(
            local, policy=EveryTokens(), delegate=Waiting(wait_s), max_tokens=TOKENS
        )

        def all_at_once() -> None:
            with ThreadPoolExecutor(CHATS) as pool:
                list(pool.map(lambda messages: _answer(model, messages, gate), conversations))

        return _rate(all_at_once)

    with local_model(plan, n_ctx=roomy(TOKENS), max_concurrency=CHATS) as local:
        yield turn


def _answer(model: RelayChatModel, messages: Messages, gate: Any) -> None:
    with gate:
        report = relay_report(model.invoke(messages))
    counts = (report.local_tokens, report.delegated_tokens)
    if counts != (LOCAL_TOKENS, SPANS * SPAN_TOKENS):
        raise EndedEarly(f"local and hosted tokens are {counts}")


@contextmanager
def raw_chats(plan: Plan) -> Iterator[Callable[[float], float]]:
    """The same work without anything around it; what it tokenizes is outside the clock."""
    parts = [PART] * (SPANS + 1)

    def turn(wait_s: float) -> float:
        span = raw.vocab.tokenize(SPAN, special=False, first=False)
        assert len(span) == SPAN_TOKENS, f"the span has {len(span)} tokens"
        return _rate(lambda: batched(raw, lasts, parts, starts=starts, span=span, wait_s=wait_s))

    with Raw(plan.model, n_ctx=roomy(TOKENS), n_threads=plan.threads, n_seq=CHATS) as raw:
        prompts = [raw.prompt(as_turns(fresh_messages())) for _ in range(CHATS)]
        for number, prompt in enumerate(prompts):
            raw.prefill(prompt, number)
        # The scores behind the last token are needed again, so that one is evaluated in each turn.
        lasts, starts = [p[-1:] for p in prompts], [len(p) - 1 for p in prompts]
        yield turn


def _rate(work: Callable[[], object]) -> float:
    """Tokens per second of all chats, local and hosted, from the first ask to the last word."""
    started = time.perf_counter()
    work()
    return CHATS * TOKENS / (time.perf_counter() - started)
