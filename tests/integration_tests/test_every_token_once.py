"""Every token is counted once: LangChain's count, ours, the ledger's and the host's own.

Runs of all kinds together: invoked and streamed, asked again, failed, taken from LangChain's cache
and broken off. Where usage arrived, all counts are equal; no ledger is ever below the host's.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage

from langchain_relay import (
    RelayChatModel,
    errors,
    get_cost_callback,
    get_relay_callback,
    relay_report,
)
from langchain_relay.engine.ledger import Account, Amount, Entry, Ledger, MemoryLedger
from langchain_relay.engine.values import Charge
from langchain_relay.ledgers import SQLiteLedger
from langchain_relay.testing import ScriptedLocal
from tests.faults import Fault, FaultServer, Reply, Served
from tests.faults.script import UNBOUNDED
from tests.integration_tests.delegates.hosted_sides import (
    ANTHROPIC,
    CLIENT_RESPONSES,
    GEMINI,
    RESPONSES,
    THROUGH_A_CLIENT,
    THROUGH_LANGCHAIN,
    lacks,
)
from tests.soaks import SOAK, note_soak

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SIDES = [THROUGH_LANGCHAIN, ANTHROPIC, GEMINI, RESPONSES, THROUGH_A_CLIENT, CLIENT_RESPONSES]
PRICES = {side.model: (1, 2) for side in SIDES}  # US dollars per million tokens
LOCAL = "scripted-local"
EVERYTHING = Account("global", "all")
RUNS = 1_000 if SOAK else 50
AT_ONCE = 8
SEED = 6

SLOW = {Fault.SLOW_HEADERS: 0.05, Fault.SLOW_TOKENS: 0.02}
HANGS = {Fault.STALLED, Fault.KEEP_ALIVE}
WEIGHTS: dict[Fault | None, float] = {
    None: 24.0,
    **{fault: 0.1 if fault in HANGS else 1.0 for fault in Fault},
    Fault.SLOW_TOKENS: 8.0,  # something to be broken off
}
WAYS = {"invoke": 3, "ainvoke": 3, "stream": 3, "astream": 3, "close": 2, "aclose": 2, "cancel": 2}


@dataclass
class Run:
    """One answer, and what the callbacks around it counted.

    Attributes:
        way: How it was asked for.
        marker: Stands in its question.
        message: `None`: it was broken off, or raised.
        hit: It came from LangChain's cache.
    """

    way: str
    marker: str
    message: AIMessage | None = None
    hit: bool = False
    langchains: tuple[int, int] = (0, 0)
    costs: tuple[int, int] = (0, 0)
    totals: tuple[int, int] = (0, 0)
    costs_nanousd: int = 0
    totals_nanousd: int = 0

    @property
    def charges(self) -> tuple[Charge, ...]:
        return relay_report(self.message).charges if self.message and not self.hit else ()

    @property
    def is_reported(self) -> bool:
        """It was completed, and every host that answered said what it counted."""
        well = self.message is not None and relay_report(self.message).failed == 0
        return well and not any(charge.estimated for charge in self.charges)


@dataclass
class Mix:
    """Many runs over one host, drawn by number."""

    server: FaultServer
    ledger: Ledger
    runs: list[Run] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)
    models: list[RelayChatModel] = field(init=False)

    def __post_init__(self) -> None:
        self.server.script(self.script)
        self.models = [
            RelayChatModel(
                model=ScriptedLocal("It is ", "<call>20</call>", " so."),
                delegate=side(self.server),
                prices=PRICES,
                ledger=self.ledger,
                cache=InMemoryCache(),
                max_retries=retries,
                timeout=1.0,
                on_delegate_error="raise" if raises else "continue",
                end_on_delegate_stop=False,
            )
            for side in SIDES
            for retries, raises in ((0, False), (1, False), (1, True))
        ]

    def script(self, served: Served) -> Reply:
        name = marker_of(served)
        with self.lock:
            self.attempts[name] += 1
            rng = random.Random(f"{SEED} {name} {self.attempts[name]}")
        drawn = {fault: w for fault, w in WEIGHTS.items() if fault not in lacks(served.dialect)}
        (fault,) = rng.choices([*drawn], [*drawn.values()])
        delay_s = SLOW.get(fault, 0.0) if fault else 0.0
        return Reply(fault=fault, delay_s=delay_s, hold_s=2.0, retry_after_s=0.01)

    async def one(self, number: int) -> None:
        """One run; some that can be in LangChain's cache then are asked for again."""
        rng = random.Random(f"{SEED} run {number}")
        model, (way,) = rng.choice(self.models), rng.choices([*WAYS], [*WAYS.values()])
        run = Run(way, f"#{number}#")
        await counted(model, run, rng)
        again = Run(way, run.marker, hit=True)
        self.runs.append(run)
        if run.message is not None and way in {"invoke", "ainvoke"} and rng.random() < 0.5:
            await counted(model, again, rng)
            self.runs.append(again)

    async def all(self, count: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(number: int) -> None:
            async with gate:
                await self.one(number)

        await asyncio.gather(*(gated(number) for number in range(count)))
        assert await asyncio.to_thread(self.server.settled, 10.0)


async def counted(model: RelayChatModel, run: Run, rng: random.Random) -> None:
    """Do one run under all callbacks."""
    with (
        get_usage_metadata_callback() as usage,
        get_cost_callback(PRICES) as costs,
        get_relay_callback() as totals,
        suppress(errors.DelegateError, errors.DelegateTimeout),
    ):
        run.message = await ask(model, run, rng)
    hosted = [counts for name, counts in usage.usage_metadata.items() if name != LOCAL]
    run.langchains = (
        sum(counts["input_tokens"] for counts in hosted),
        sum(counts["output_tokens"] for counts in hosted),
    )
    models = [one for name, one in costs.models.items() if name != LOCAL]
    run.costs = (sum(one.input_tokens for one in models), sum(one.output_tokens for one in models))
    run.costs_nanousd = costs.cost_nanousd
    run.totals = (totals.input_tokens, totals.output_tokens)
    run.totals_nanousd = totals.cost_nanousd


async def ask(model: RelayChatModel, run: Run, rng: random.Random) -> AIMessage | None:
    question = f"Why? {run.marker}"
    match run.way:
        case "invoke":
            return await asyncio.to_thread(model.invoke, question)
        case "ainvoke":
            return await model.ainvoke(question)
        case "stream":
            return await asyncio.to_thread(lambda: added(list(model.stream(question))))
        case "astream":
            return added([chunk async for chunk in model.astream(question)])
        case "close":
            await asyncio.to_thread(broken_off, model, question, rng.randrange(1, 9))
        case "aclose":
            await abroken_off(model, question, rng.randrange(1, 9))
        case "cancel":
            await cancelled(model, question, rng.uniform(0.0, 0.08))
    return None


def added(chunks: list[Any]) -> AIMessage:
    whole: AIMessage = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


def broken_off(model: RelayChatModel, question: str, after: int) -> None:
    written: Any = model.stream(question)
    for _ in zip(range(after), written, strict=False):
        pass
    written.close()


async def abroken_off(model: RelayChatModel, question: str, after: int) -> None:
    written: Any = model.astream(question)
    for _ in range(after):
        if await anext(written, None) is None:
            break
    await written.aclose()


async def cancelled(model: RelayChatModel, question: str, after_s: float) -> None:
    task = asyncio.ensure_future(model.ainvoke(question))
    await asyncio.sleep(after_s)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# --- what must hold -----------------------------------------------------------------------------


def marker_of(served: Served) -> str:
    found = re.search(r"#\d+#", json.dumps(served.body))
    assert found
    return found[0]


def owed(one: Served) -> Amount:
    """What a host has counted.

    One that writes on past the limit it was given and is hung up on is owed what was asked for.
    """
    read, wrote = one.due
    if one.fault in UNBOUNDED and one.limit is not None:
        wrote = min(wrote, one.limit)
    return Amount(1_000 * read + 2_000 * wrote, wrote, int((read, wrote) != (0, 0)))


def check_reported(run: Run, served: list[Served], entries: dict[str, Entry]) -> None:
    """All five counts of a completed run are equal."""
    counts = [one.usage for one in served if one.usage is not None]
    hosts = (sum(read for read, _ in counts), sum(wrote for _, wrote in counts))
    assert run.langchains == run.costs == run.totals == hosts, (run, served)
    cost_nanousd = 1_000 * hosts[0] + 2_000 * hosts[1]
    assert run.costs_nanousd == run.totals_nanousd == cost_nanousd
    booked = [entries[f"{charge.call_id}#{charge.attempt}"] for charge in run.charges]
    amounts = [entry.amount for entry in booked if entry.state == "settled"]
    assert not any(entry.estimated for entry in booked)
    assert sum(amounts, Amount()) == Amount(cost_nanousd, hosts[1], len(counts))


def check_hit(run: Run) -> None:
    """What comes from LangChain's cache costs nothing and is no call."""
    assert run.message is not None
    assert relay_report(run.message).cost_nanousd == 0
    assert (run.langchains, run.costs, run.totals) == ((0, 0),) * 3
    assert (run.costs_nanousd, run.totals_nanousd) == (0, 0)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
    else:
        with SQLiteLedger(tmp_path / "spending.db") as kept:
            yield kept


async def test_every_token_is_counted_once(ledger: Ledger) -> None:
    began_s = time.monotonic()
    with FaultServer() as server:
        mix = Mix(server, ledger)
        await mix.all(RUNS)
        served: dict[str, list[Served]] = {}
        for one in server.served:
            served.setdefault(marker_of(one), []).append(one)
    entries = {entry.key: entry for entry in ledger.entries()}
    reported = [run for run in mix.runs if run.is_reported and not run.hit]
    hits = [run for run in mix.runs if run.hit]
    for run in reported:
        check_reported(run, served.get(run.marker, []), entries)
    for run in hits:
        check_hit(run)
    hosts = sum((owed(one) for one in server.served), Amount())
    now = time.time()
    kept = ledger.spent(EVERYTHING, now=now)
    assert ledger.booked(EVERYTHING, now=now) == kept, "a reservation was left open"
    assert kept.cost_nanousd >= hosts.cost_nanousd
    assert kept.tokens >= hosts.tokens
    assert kept.calls >= hosts.calls
    for name, requests in served.items():
        check_never_below(name, requests, mix, entries)
    facts: dict[str, Any] = {
        "ledger": type(ledger).__name__.removesuffix("Ledger").lower(),
        "runs": len(mix.runs),
        "ways": dict(sorted(Counter(run.way for run in mix.runs).items())),
        "requests": len(server.served),
        "faults": sum(one.fault is not None for one in server.served),
        "asked_again": sum(len(requests) > 1 for requests in served.values()),
        "cache_hits": len(hits),
        "all_counts_equal": len(reported),
        "ledger_nanousd": kept.cost_nanousd,
        "hosts_nanousd": hosts.cost_nanousd,
        "seconds": round(time.monotonic() - began_s, 1),
        "seed": SEED,
    }
    print(facts)
    for kind in ("all_counts_equal", "cache_hits", "asked_again", "faults"):
        assert facts[kind], f"no run of the kind {kind}"
    note_soak(f"tokens-{facts['ledger']}", facts)


def check_never_below(
    name: str, requests: list[Served], mix: Mix, entries: dict[str, Entry]
) -> None:
    """Nor for the requests of one run that was completed."""
    run = next(one for one in mix.runs if one.marker == name)
    if run.message is None:
        return
    booked = [entries[f"{charge.call_id}#{charge.attempt}"] for charge in run.charges]
    hosts = sum((owed(one) for one in requests), Amount())
    kept = sum((entry.amount for entry in booked if entry.state == "settled"), Amount())
    assert kept.cost_nanousd >= hosts.cost_nanousd, (run, requests)
    assert kept.tokens >= hosts.tokens
    assert kept.calls >= hosts.calls
