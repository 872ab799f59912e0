"""Several chats at once: tokens per second of all together, while all of them write.

Every chat has a thread of its own that reads `RelayChatModel.stream`. Counted is from the moment
when the last of them has begun to the moment when the first of them ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from benchmarks.chat import (
    EndedEarly,
    Timed,
    as_turns,
    fresh_messages,
    local_model,
    relay_model,
    relayed,
    roomy,
)
from benchmarks.measure import Bound, Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw, batched
from benchmarks.worker import Worker

BOUNDS = {8: Bound(1.6, failure=1.5), 16: Bound(1.9)}


def measure(plan: Plan, told: Told) -> list[Row]:
    """Relay and raw batched loop at every number of chats, each against one chat of its own."""
    with Worker(relay_chats, plan) as relay, Worker(raw_chats, plan) as raw:
        sides: dict[str, Callable[[], float]] = {}
        for chats in plan.chats:
            sides[_name("relay", chats)] = partial(relay, chats)
            sides[_name("raw batched loop", chats)] = partial(raw, chats)
        for side in sides.values():
            side()
        rates = interleaved(sides, plan.rounds, told)
    return [row for who in ("relay", "raw batched loop") for row in _rows(plan, who, rates)]


def _rows(plan: Plan, who: str, rates: dict[str, tuple[float, ...]]) -> list[Row]:
    one = _name(who, plan.chats[0])
    return [
        Row(
            "chats",
            _name(who, chats),
            "tokens/s",
            rates[_name(who, chats)],
            against=one,
            ratios=ratios(rates[_name(who, chats)], rates[one]),
            bound=BOUNDS.get(chats) if who == "relay" else None,
            facts={"chats": chats, "side": who, "tokens": plan.chat_tokens},
        )
        for chats in plan.chats
    ]


def _name(who: str, chats: int) -> str:
    return f"{who}, {chats} chat{'s' * (chats > 1)}"


@contextmanager
def relay_chats(plan: Plan) -> Iterator[Callable[[int], float]]:
    """Answers of one `RelayChatModel`, which has room for all."""
    tokens, most = plan.chat_tokens, max(plan.chats)

    def turn(chats: int) -> float:
        with ThreadPoolExecutor(chats) as pool:
            runs = list(pool.map(lambda _: relayed(model, fresh_messages(), tokens), range(chats)))
        return together(runs, tokens)

    with local_model(plan, n_ctx=roomy(tokens), max_concurrency=most) as local:
        model = relay_model(local)
        yield turn


def together(runs: list[Timed], tokens: int) -> float:
    """Tokens per second of all streams while every one of them writes.

    Raises:
        EndedEarly: a stream was shorter than planned, or they never all wrote at once.
    """
    for run in runs:
        run.rate(tokens)  # checks the length
    begin = max(run.times[0] for run in runs)
    end = min(run.times[-1] for run in runs)
    if end <= begin:
        raise EndedEarly("one chat ended before another had begun: more tokens are needed")
    return sum(begin < at <= end for run in runs for at in run.times) / (end - begin)


@contextmanager
def raw_chats(plan: Plan) -> Iterator[Callable[[int], float]]:
    """The raw loop over a batch, behind prompts that are evaluated before the clock starts."""
    tokens, most = plan.chat_tokens, max(plan.chats)

    def turn(chats: int) -> float:
        prompts = [raw.prompt(as_turns(fresh_messages())) for _ in range(chats)]
        firsts = [raw.prefill(prompt, number) for number, prompt in enumerate(prompts)]
        started = time.perf_counter()
        batched(raw, [[first] for first in firsts], [tokens - 1], starts=list(map(len, prompts)))
        return chats * (tokens - 1) / (time.perf_counter() - started)

    with Raw(plan.model, n_ctx=roomy(tokens), n_threads=plan.threads, n_seq=most) as raw:
        yield turn
