"""What the package itself costs per token: everything but llama.cpp, in microseconds.

The engine runs over a context whose decode returns at once and whose scores are a constant. So the
time is that of the threads, futures, rules, texts and events alone, and none of it is hidden behind
a decode, as run-ahead hides some of it in earnest: this is the most it can cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.chat import fresh_messages, relay_model
from benchmarks.measure import Bound, Row, Told, interleaved
from benchmarks.plan import Plan
from langchain_relay import RelayChatModel
from langchain_relay.engine.drivers import adrive, drive
from langchain_relay.engine.events import Decode, TextAdded
from langchain_relay.engine.loop import Bounds, Flow, relay
from langchain_relay.engine.policy import AnswerContext
from langchain_relay.engine.values import LocalSession, Sampling, Turn
from langchain_relay.local import LlamaCppModel, llamacpp
from langchain_relay.local.engine import Engine
from langchain_relay.policies import Never

BOUND = Bound(100, at="most")
N_BATCH = 512
TURNS = [Turn("user", "Count.")]
GREEDY = Sampling(temperature=0)


class Instant:
    """A context that decodes nothing: the next token is always the word ` one`."""

    n_ctx = 1 << 20
    thinking = False
    rewinds = True

    def __init__(self) -> None:
        self.vocab = self
        self._scores = np.zeros(16, dtype=np.float32)

    # the vocabulary
    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        del special, first
        return [1] * len(text.split())

    def count(self, text: str) -> int:
        return len(text.split())

    def piece(self, token: int) -> bytes:
        del token
        return b" one"

    def is_eog(self, token: int) -> bool:
        del token
        return False

    # the context
    def prompt(self, turns: Sequence[Turn], *, open_assistant: bool, known: Any) -> list[int]:
        del turns, open_assistant, known
        return [1] * 8

    def sampler(self, chosen: Any) -> Instant:
        del chosen
        return self

    def pick(self, logits: Any, position: int, recent: Any, attempt: int) -> int:
        del logits, position, recent, attempt
        return 1

    def decode(self, rows: Sequence[Any], *, hidden: bool) -> int:
        del rows, hidden
        return 0

    def logits(self, row: int) -> Any:
        del row
        return self._scores

    def measure(self, logits: Any, signals: Any) -> dict[str, float]:
        del logits
        return dict.fromkeys(signals, 0.0)

    def cut(self, sequence: int, length: int) -> bool:
        del sequence, length
        return True

    def last_words(self) -> str:
        return ""

    def free(self) -> None:
        pass


class Nobody:
    """The hosted side of answers that never ask for it."""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def measure(plan: Plan, told: Told) -> list[Row]:
    """Layer by layer; each row contains the ones it is built on."""

    def start(settings: Any) -> Engine:
        return Engine(Instant, max_concurrency=settings.max_concurrency, n_batch=N_BATCH)

    with (
        patch.object(llamacpp, "_new_engine", start),
        LlamaCppModel(plan.model, max_concurrency=1) as local,
    ):
        model = relay_model(local)
        n = plan.overhead_tokens
        works: dict[str, Callable[[], int]] = {
            "engine and session": lambda: _decoded(local, n),
            "engine and driver, sync": lambda: _driven(local, n),
            "engine and driver, async": lambda: asyncio.run(_adriven(local, n)),
            "RelayChatModel.stream": lambda: _streamed(model, n),
            "RelayChatModel.astream": lambda: asyncio.run(_astreamed(model, n)),
        }
        for work in works.values():
            work()
        sides = {name: _us_per_token(work, n) for name, work in works.items()}
        found = interleaved(sides, plan.rounds, told)
    return [
        Row(
            "overhead",
            f"{name}, no model",
            "µs per token",
            us,
            bound=BOUND if "driver" in name else None,
            note="" if "driver" in name or "session" in name else "LangChain's own share included",
        )
        for name, us in found.items()
    ]


def _us_per_token(work: Callable[[], int], tokens: int) -> Callable[[], float]:
    def turn() -> float:
        started = time.perf_counter()
        found = work()
        ended = time.perf_counter()
        assert found == tokens, f"{found} tokens instead of {tokens}"
        return 1e6 * (ended - started) / tokens

    return turn


def _decoded(local: LlamaCppModel, n: int) -> int:
    session = local.open(TURNS, GREEDY).result()
    rule = Never().watch(AnswerContext(session.count)).rule
    append: tuple[int, ...] = ()
    for _ in range(n):
        append = (session.decode(Decode(append, rule=rule)).result().id,)
    session.close()
    return n


def _flow(session: LocalSession, n: int) -> Flow:
    bounds = Bounds(max_tokens=n, context_left=session.context_left, max_calls=0)
    watch = Never().watch(AnswerContext(session.count))
    return relay(watch, bounds, count=session.count)


def _driven(local: LlamaCppModel, n: int) -> int:
    session = local.open(TURNS, GREEDY).result()
    source: Any = Nobody()
    return sum(isinstance(e, TextAdded) for e in drive(_flow(session, n), session, source))


async def _adriven(local: LlamaCppModel, n: int) -> int:
    session = await asyncio.wrap_future(local.open(TURNS, GREEDY))
    source: Any = Nobody()
    events = adrive(_flow(session, n), session, source)
    return sum([isinstance(event, TextAdded) async for event in events])


def _streamed(model: RelayChatModel, n: int) -> int:
    chunks = model.stream(fresh_messages(), delegation="never", max_tokens=n)
    return sum(bool(chunk.text) for chunk in chunks)


async def _astreamed(model: RelayChatModel, n: int) -> int:
    chunks = model.astream(fresh_messages(), delegation="never", max_tokens=n)
    return sum([bool(chunk.text) async for chunk in chunks])
