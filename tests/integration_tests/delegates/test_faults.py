"""Nothing a hosted model does breaks an answer: every fault, every path, and what it costs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.callbacks import RelayTotals
from langchain_relay.delegates import handover
from langchain_relay.engine.ledger import Account, Amount, MemoryLedger
from langchain_relay.engine.values import Charge
from langchain_relay.testing import ScriptedLocal
from tests.faults import Fault, FaultServer, Reply, Served
from tests.faults.script import DEFAULT_TEXT
from tests.integration_tests.delegates import older_openai
from tests.integration_tests.delegates.fault_table import (
    EXPECTED,
    MOST_BYTES,
    OTHERWISE,
    TIMEOUT_S,
    TOO_SLOW,
    Expected,
    N,
    expected_of,
)
from tests.integration_tests.delegates.hosted_sides import (
    LITELLM,
    ON_EVERY_PATH,
    ON_ONE_PATH,
    SIDES,
    THROUGH_A_CLIENT,
    THROUGH_LANGCHAIN,
    HostedSide,
    every_side,
    lacks,
)
from tests.soaks import SOAK, note_soak

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

PRICES = {side.model: (1, 2) for side in SIDES}  # US dollars per million tokens
HEAD, TAIL = "It is ", " so."
AMPLE_S = 20.0
"""A deadline that no fault but the slow ones may reach."""

HELD_S = 30.0
"""How long a host holds a client that does not hang up."""
HUNG_UP_S = 10.0
"""Within this, on a busy machine, a client that hangs up has done so."""

SEED = int(os.environ.get("RELAY_SEED", "5"))
IN_SEQUENCE = 10_000 if SOAK else 500
AT_ONCE = 1_000 if SOAK else 100
CHATS = 32


# --- both sides ---------------------------------------------------------------------------------


class KeptLedger(MemoryLedger):
    """Remembers what every answer's account had come to when it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Account, Amount] = {}

    def close(self, account: Account) -> None:
        self.kept[account] = self.spent(account, now=time.time())
        super().close(account)

    @property
    def total(self) -> Amount:
        return sum_of(self.kept.values())


@dataclass
class Side:
    """A relay over a fault server, and everything it keeps books in."""

    server: FaultServer
    hosted: Any
    local: ScriptedLocal = field(
        default_factory=lambda: ScriptedLocal(HEAD, f"<call>{N}</call>", TAIL)
    )
    ledger: KeptLedger = field(default_factory=KeptLedger)
    totals: RelayTotals = field(default_factory=RelayTotals)

    def model(self, **fields: Any) -> RelayChatModel:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": AMPLE_S, **fields}
        settings.setdefault("end_on_delegate_stop", False)  # the completions API's ends the answer
        return RelayChatModel(
            model=self.local,
            delegate=self.hosted,
            prices=PRICES,
            budget=Budget(usd=1_000, calls=9),
            ledger=self.ledger,
            **settings,
        )

    @property
    def config(self) -> Any:
        return {"callbacks": [self.totals]}


def invoke(model: RelayChatModel, question: str, config: Any) -> AIMessage:
    return model.invoke(question, config)


def stream(model: RelayChatModel, question: str, config: Any) -> AIMessage:
    return _added(list(model.stream(question, config)))


async def ainvoke(model: RelayChatModel, question: str, config: Any) -> AIMessage:
    return await model.ainvoke(question, config)


async def astream(model: RelayChatModel, question: str, config: Any) -> AIMessage:
    return _added([chunk async for chunk in model.astream(question, config)])


def _added(chunks: list[AIMessageChunk]) -> AIMessage:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


SYNC: list[Any] = [invoke, stream]
ASYNC: list[Any] = [ainvoke, astream]


async def answer(path: Any, model: RelayChatModel, question: str, config: Any) -> AIMessage:
    if path in ASYNC:
        written: AIMessage = await path(model, question, config)
        return written
    return await asyncio.to_thread(path, model, question, config)


every_path = pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
MAKERS = [THROUGH_A_CLIENT, THROUGH_LANGCHAIN]
both_sides = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.name)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usage behind a cut is read though the machine is busy."""
    monkeypatch.setattr(handover, "DRAIN_S", 10.0)


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    yield
    assert eventually(lambda: not pumping()), f"threads that still read a host: {pumping()}"


def pumping() -> list[str]:
    """Threads that read a hosted stream."""
    return [thread.name for thread in threading.enumerate() if thread.name == "relay-delegate"]


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def too_slow(fault: Fault) -> Reply:
    """A reply that is too slow for the deadline, or any other."""
    delay_s = {Fault.SLOW_HEADERS: HELD_S, Fault.SLOW_TOKENS: TIMEOUT_S * 0.4}.get(fault, 0.0)
    return Reply(fault=fault, delay_s=delay_s, hold_s=HELD_S)


# --- what must hold -----------------------------------------------------------------------------


def cost_nanousd(read: int, wrote: int) -> int:
    return 1_000 * read + 2_000 * wrote


def span_of(message: AIMessage) -> str:
    """What stands between the local model's two halves."""
    text = message.text
    assert text.startswith(HEAD), text
    assert text.endswith(TAIL), text
    return text[len(HEAD) : -len(TAIL)]


def check_charges(message: AIMessage, served: list[Served]) -> Amount:
    """Each request has one charge that is at least what the host would bill; their sum."""
    # An attempt that a breaker held back reached nobody and costs nothing.
    charges = [c for c in relay_report(message).charges if c.outcome != "CircuitOpen"]
    # Nor did one whose deadline was over before it connected, but nobody could know that.
    assert len(served) <= len(charges), (charges, served)
    late = charges[len(served) :]
    assert [charge.outcome for charge in late] in ([], ["DelegateTimeout"]), (charges, served)
    booked = [check_charge(*pair) for pair in zip(charges, served, strict=False)]
    rest = N - len(span_of(message).split())
    return sum((Amount(charge.cost_nanousd or 0, rest, 1) for charge in late), sum_of(booked))


def check_charge(charge: Charge, one: Served) -> Amount:
    """What was booked for one request."""
    read, wrote = one.due
    if charge.released:
        assert (one.due, charge.cost_nanousd) == ((0, 0), 0)
        return Amount()
    if not charge.estimated:
        assert (charge.input_tokens, charge.output_tokens) == one.usage
        assert charge.cost_nanousd == cost_nanousd(read, wrote)
        return Amount(cost_nanousd(read, wrote), wrote, 1)
    assert one.limit is not None
    # What a host wrote past its limit and did not get to report, nobody can know.
    assert (charge.cost_nanousd or 0) >= cost_nanousd(read, min(wrote, one.limit))
    return Amount(charge.cost_nanousd or 0, one.limit, 1)


def sum_of(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def check_books(side: Side, messages: Iterable[AIMessage]) -> None:
    """Ledger, charges and the host's own count agree, and nothing is left open."""
    booked = Amount()
    served = by_question(side.server.served)
    for message in messages:
        booked += check_charges(message, served.pop(question_of(message), []))
    assert not served
    assert side.ledger.total == booked
    assert not side.ledger._open
    assert side.local.open_sessions == 0


def by_question(served: Iterable[Served]) -> dict[str, list[Served]]:
    found: dict[str, list[Served]] = {}
    for one in served:
        found.setdefault(marker(json.dumps(one.body)), []).append(one)
    return found


def question_of(message: AIMessage) -> str:
    return str(message.additional_kwargs["question"])


def asked(message: AIMessage, question: str) -> AIMessage:
    """The answer, with the question it belongs to."""
    message.additional_kwargs["question"] = marker(question)
    return message


def marker(text: str) -> str:
    found = re.search(r"#\d+#", text)
    assert found, f"no marked question in {text!r}"
    return found[0]


def outcome(message: AIMessage) -> dict[str, Any]:
    """The one event that ends the one hand-over."""
    started, ended = message.response_metadata["relay"]["events"]
    assert started["type"] == "relay.call.started"
    assert started["call_id"] == ended["call_id"]
    return dict(ended)


# --- counts that cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [(-5, -7), (5, -7), (0, 3), (0, 0)], ids=str)
@every_side
async def test_a_usage_that_no_request_can_have_is_not_believed(
    server: FaultServer, make: HostedSide, usage: tuple[int, int]
):
    server.script(Reply(usage=usage))
    side = Side(server, make(server))
    for path in (invoke, astream):
        message = await answer(path, side.model(), "Why?", side.config)
        assert span_of(message) == DEFAULT_TEXT
        (charge,) = relay_report(message).charges
        assert charge.estimated
        assert (charge.input_tokens, charge.output_tokens) == (None, None)
        assert (charge.cost_nanousd or 0) >= cost_nanousd(1, N)
    assert side.ledger.total.calls == 2
    assert side.ledger.total.cost_nanousd >= 2 * cost_nanousd(1, N)
    assert not side.ledger._open


@pytest.mark.parametrize("name", [5, ["m"], {"m": 1}], ids=str)
@both_sides
async def test_a_model_that_is_no_name_is_not_looked_up(
    server: FaultServer, make: HostedSide, name: Any
):
    server.script(Reply(model=name))
    delegate = make(server)
    for path in (invoke, astream):
        local = ScriptedLocal(HEAD, f"<call>{N}</call>", TAIL)
        # Without a price of the model that is asked, that of the one which answered is looked up.
        model: Any = RelayChatModel(model=local, delegate=delegate).bind(delegate_model="own")
        message = await answer(path, model, "Why?", {})
        assert span_of(message) == DEFAULT_TEXT


@every_side
async def test_half_a_character_is_replaced_so_that_the_answer_can_be_printed(
    server: FaultServer, make: HostedSide
):
    server.script(Reply(text="blue \ud83d x"))
    side = Side(server, make(server))
    for path in (invoke, astream):
        message = await answer(path, side.model(), "Why?", side.config)
        assert span_of(message) == "blue \ufffd x"


# --- every fault, every path --------------------------------------------------------------------


def cases() -> Iterator[Any]:
    """Every fault with every client class, and with every path; four classes over all paths."""
    paths = SYNC + ASYNC
    for side in ON_EVERY_PATH:
        for fault in side.faults:
            yield from ((fault, side, path) for path in paths)
    for turn, side in enumerate(ON_ONE_PATH):
        for at, fault in enumerate(side.faults):
            yield fault, side, paths[(at + turn) % len(paths)]


def case_id(case: Any) -> str:
    return getattr(case, "name", None) or getattr(case, "__name__", None) or str(case)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("fault", "make", "path"), list(cases()), ids=case_id)
async def test_whatever_the_host_does_the_local_model_completes_the_answer(
    server: FaultServer, fault: Fault, make: HostedSide, path: Any
):
    side = Side(server, make(server))
    expected = expected_of(make.name, fault, on_a_thread=path in SYNC, exact=make.exact)
    messages: list[AIMessage] = []
    if fault in TOO_SLOW:  # the deadline is for the host, not for building a client
        server.script("blue light.")
        messages.append(asked(await answer(path, side.model(), "Why? #0#", {}), "#0#"))
    server.script(too_slow(fault))
    model = side.model(timeout=TIMEOUT_S if fault in TOO_SLOW else AMPLE_S)
    message = asked(await answer(path, model, "Why? #1#", side.config), "#1#")
    check_span(span_of(message), expected)
    check_event(outcome(message), expected)
    over = await asyncio.to_thread(server.settled, HUNG_UP_S)
    assert over, "the client neither read on nor hung up"
    (charge,) = relay_report(message).charges
    assert booked_as(charge) == expected.booked
    assert len(server.served) == len(messages) + 1
    assert (server.served[-1].fault, server.served[-1].dialect) == (fault, make.dialect)
    check_books(side, [*messages, message])
    assert side.totals.failed == (expected.ends == "failed")


@pytest.mark.timeout(300)
def test_whatever_the_host_does_litellm_completes_the_answer_too():
    """Its environment has an older `openai`."""
    chosen = "the_local_model_completes_the_answer or without_faults"
    faults = 4 * len(LITELLM[0].faults) + sum(len(side.faults) for side in LITELLM[1:])
    assert older_openai.passed_inside(__file__, chosen) == faults + 4 * len(LITELLM)


def check_span(span: str, expected: Expected) -> None:
    if expected.whole:
        assert span == expected.kept
    else:
        assert expected.kept.startswith(span)
        assert len(span.encode()) <= MOST_BYTES


def check_event(ended: dict[str, Any], expected: Expected) -> None:
    if expected.ends == "failed":
        assert ended["type"] == "relay.call.failed"
        assert ended["error_type"] in expected.error_types
        assert expected.says in ended["error"]
        assert ended["error"]
    else:
        assert ended["type"] == "relay.call.finished"
        assert ended["declined"] is (expected.ends == "declined")


def booked_as(charge: Charge) -> str:
    return "released" if charge.released else "worst" if charge.estimated else "reported"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("path", [invoke, ainvoke])
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in TOO_SLOW])
async def test_a_model_that_does_not_stream_breaks_no_answer_either(
    server: FaultServer, fault: Fault, path: Any
):
    server.script(Reply(fault=fault))
    hosted = THROUGH_LANGCHAIN(server).model_copy(update={"disable_streaming": True})
    side, expected = Side(server, hosted), EXPECTED[fault]
    message = asked(await answer(path, side.model(), "Why? #1#", side.config), "#1#")
    assert server.served[0].body.get("stream", False) is False
    in_pieces = expected.booked != "worst" or expected.ends == "finished"  # else all is lost
    assert expected.kept.startswith(span_of(message))
    assert bool(span_of(message)) == (in_pieces and bool(expected.kept))
    assert outcome(message)["type"].endswith("failed") == (expected.ends == "failed")
    check_books(side, [message])


def test_the_table_has_every_fault_and_the_matrix_every_pair():
    assert set(EXPECTED) == set(Fault)
    assert set(OTHERWISE) <= {side.name for side in [*SIDES, *LITELLM]}
    pairs = {(fault, side.name) for fault, side, _ in cases()}
    assert pairs == {(fault, side.name) for side in SIDES for fault in side.faults}
    for dialect in {side.dialect for side in SIDES}:
        speakers = [case for case in cases() if case[1].dialect == dialect]
        assert {path for _, _, path in speakers} == set(SYNC + ASYNC), dialect


@every_path
@every_side
async def test_a_host_without_faults(server: FaultServer, make: HostedSide, path: Any):
    server.script("blue light.")
    side = Side(server, make(server))
    message = asked(await answer(path, side.model(), "Why? #1#", side.config), "#1#")
    assert message.text == "It is blue light. so."
    assert booked_as(relay_report(message).charges[0]) == "reported"
    check_books(side, [message])


@every_path
@both_sides
async def test_a_host_that_only_keeps_the_connection_alive_is_hung_up_on(
    server: FaultServer, make: HostedSide, path: Any
):
    server.script(Reply(fault=Fault.KEEP_ALIVE, hold_s=HELD_S))
    side = Side(server, make(server))
    await answer(path, side.model(timeout=2.0), "Why? #1#", side.config)
    assert await asyncio.to_thread(server.settled, HUNG_UP_S)
    assert server.served[0].hung_up


LONG_WORD = "w" * 2 * MOST_BYTES
CUTS = [
    (side, cut) for side in SIDES for cut in ("stop", "length") if cut == "stop" or not side.exact
]
"""A host that keeps to the limit passes none that counts its tokens."""


@pytest.mark.parametrize("path", [invoke, ainvoke], ids=lambda path: path.__name__)
@pytest.mark.parametrize(("make", "cut"), CUTS, ids=str)
async def test_a_stream_that_is_cut_is_hung_up_on_though_the_host_says_nothing_more(
    server: FaultServer, make: HostedSide, path: Any, cut: str
):
    server.script(Reply(f"{LONG_WORD} light most", fault=Fault.STALLED, fault_after=2))
    model = Side(server, make(server)).model()
    # A length cut reads on for the usage, up to half a second.
    bound: Any = model.bind(stop=["light"]) if cut == "stop" else model
    message = await answer(path, bound, "Why? #1#", {})
    assert await asyncio.to_thread(server.settled, HUNG_UP_S)
    assert server.served[0].hung_up
    (charge,) = relay_report(message).charges
    assert booked_as(charge) == "worst"


# --- retries ------------------------------------------------------------------------------------

RETRYABLE = [fault for fault in Fault if EXPECTED[fault].retryable]
FINAL = [fault for fault in Fault if not EXPECTED[fault].retryable and fault not in TOO_SLOW]
WAITS_S = {Fault.RATE_LIMITED_SECONDS: 1.0, Fault.RATE_LIMITED_DATE: 2.0}


async def answers(side: Side, model: RelayChatModel, count: int, *, at_once: bool) -> list[Any]:
    """The answers to `count` questions, by threads or on the loop."""
    questions: list[Any] = [f"Why? #{number}#" for number in range(count)]
    config: Any = {**side.config, "max_concurrency": 16}
    got = await (
        model.abatch(questions, config)
        if at_once
        else asyncio.to_thread(model.batch, questions, config)
    )
    return [asked(message, question) for message, question in zip(got, questions, strict=True)]


def first_then(faults: list[Fault], then: Reply) -> Callable[[Served], Reply]:
    """Question n meets fault n at first and `then` afterwards."""
    seen: Counter[str] = Counter()

    def script(served: Served) -> Reply:
        name = marker(json.dumps(served.body))
        seen[name] += 1
        if seen[name] > 1:
            return then
        fault = faults[int(name.strip("#"))]
        return Reply(fault=fault, retry_after_s=WAITS_S.get(fault, 0.0))

    return script


@pytest.mark.parametrize("on_the_loop", [False, True], ids=["threads", "loop"])
@both_sides
async def test_what_may_succeed_is_asked_again_from_where_it_stopped(
    server: FaultServer, make: HostedSide, on_the_loop: bool
):
    server.script(first_then(RETRYABLE, Reply(" scatters most.")))
    side = Side(server, make(server))
    model = side.model(max_retries=1)
    messages = await answers(side, model, len(RETRYABLE), at_once=on_the_loop)
    for fault, message in zip(RETRYABLE, messages, strict=True):
        kept = EXPECTED[fault].kept
        assert span_of(message) == (kept + " scatters most.").lstrip(), fault
        assert outcome(message)["type"] == "relay.call.finished"
        first, second = by_question(server.served)[question_of(message)]
        assert second.limit == N - len(kept.split())
        waited_s = second.arrived_s - first.arrived_s
        # An HTTP date has whole seconds, so up to one is lost.
        least_s = WAITS_S.get(fault, 0.0) - (fault is Fault.RATE_LIMITED_DATE)
        assert waited_s >= 0.9 * least_s, f"{fault}: asked again after {waited_s:.2f} s"
        charges = relay_report(message).charges
        assert [booked_as(charge) for charge in charges] == [EXPECTED[fault].booked, "reported"]
    check_books(side, messages)
    assert side.totals.failed == 0


@pytest.mark.parametrize("on_the_loop", [False, True], ids=["threads", "loop"])
@both_sides
async def test_what_cannot_succeed_is_asked_once(
    server: FaultServer, make: HostedSide, on_the_loop: bool
):
    server.script(first_then(FINAL, Reply("asked again")))
    side = Side(server, make(server))
    messages = await answers(side, side.model(max_retries=2), len(FINAL), at_once=on_the_loop)
    assert len(server.served) == len(FINAL)
    check_books(side, messages)


@both_sides
async def test_a_host_that_asks_for_more_time_than_there_is_is_not_waited_for(
    server: FaultServer, make: HostedSide
):
    server.script(Reply(fault=Fault.RATE_LIMITED_SECONDS, retry_after_s=60))
    side, began_s = Side(server, make(server)), time.monotonic()
    message = await side.model(max_retries=2, timeout=30.0).ainvoke("Why? #1#")
    assert time.monotonic() - began_s < 15.0
    assert (message.text, len(server.served)) == (HEAD + TAIL, 1)


# --- a soak of random faults --------------------------------------------------------------------

# Half of the hosts are sound, and slow ones are rare, because each costs a deadline.
WEIGHTS: dict[Fault | None, float] = {
    None: 24.0,
    **{fault: 0.25 if fault in TOO_SLOW else 1.0 for fault in Fault},
}


@dataclass
class Soak:
    """Many answers over one server whose every reply is drawn by the question and the attempt."""

    seed: int
    drawn: Counter[Fault | None] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def script(self, served: Served) -> Reply:
        name = marker(json.dumps(served.body))
        with self.lock:
            self.attempts[name] += 1
            rng = random.Random(f"{self.seed} {name} {self.attempts[name]}")
            drawn = {fault: w for fault, w in WEIGHTS.items() if fault not in lacks(served.dialect)}
            (fault,) = rng.choices([*drawn], [*drawn.values()])
            self.drawn[fault] += 1
        delay_s = {Fault.SLOW_HEADERS: 3.0, Fault.SLOW_TOKENS: 0.7}.get(fault or Fault.STALLED, 0.0)
        return Reply(fault=fault, delay_s=delay_s, hold_s=4.0, retry_after_s=0.1)

    async def one(self, number: int, models: list[list[RelayChatModel]], side: Side) -> AIMessage:
        """One answer by a random client over a random path."""
        rng = random.Random(f"{self.seed} path {number}")
        patience = rng.choices([0, 1], [9, 1])[0]  # a retry after a 429 waits
        model, path = rng.choice(models[patience]), rng.choice(SYNC + ASYNC)
        question = f"Why? #{number}#"
        async with asyncio.timeout(60):  # a hang is a failure with a name
            message = await answer(path, model, question, side.config)
        return asked(message, question)


SOUND = re.compile(
    r"(?: ?(?:blue|light\.?|scatters|most\.|<call>9</call>)| ?wor?d?| ?wo?|\ufffd+\()*", re.ASCII
)
"""What an answer may contain of the hosts' replies, cut anywhere."""


async def warmed(models: list[RelayChatModel], first: int) -> list[AIMessage]:
    """One answer of each model per flavour of its client.

    To build them all at once takes longer than the deadline, which opens the breaker.
    """
    asks = [(model, path) for model in models for path in (invoke, ainvoke)]
    questions = [f"Why? #{number}#" for number in range(first, first + len(asks))]
    return [
        asked(await answer(path, model, question, {}), question)
        for (model, path), question in zip(asks, questions, strict=True)
    ]


async def soak(server: FaultServer, count: int, at_once: int) -> tuple[Soak, Side]:
    """Draw `count` answers, at most `at_once` together; check each and all of them."""
    side, drawing = Side(server, None), Soak(SEED)
    sides = [Side(server, make(server), side.local, side.ledger, side.totals) for make in SIDES]
    timeout_s = TIMEOUT_S if at_once == 1 else 2.0  # the host's threads want the processor too
    models = [[one.model(max_retries=n, timeout=timeout_s) for one in sides] for n in (0, 1)]
    gate = asyncio.Semaphore(at_once)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(at_once))

    async def gated(number: int) -> AIMessage:
        async with gate:
            return await drawing.one(number, models, side)

    server.script("blue light.")
    messages = await warmed([model for some in models for model in some], count)
    server.script(drawing.script)
    messages += await asyncio.gather(*(gated(number) for number in range(count)))
    assert await asyncio.to_thread(server.settled, 10.0)
    for message in messages:
        assert SOUND.fullmatch(span_of(message)), message.text
        assert relay_report(message).failed <= 1
    check_books(side, messages)
    return drawing, side


@pytest.mark.parametrize(
    ("count", "at_once"), [(IN_SEQUENCE, 1), (AT_ONCE, CHATS)], ids=["sequence", "at_once"]
)
async def test_a_soak_of_random_faults(server: FaultServer, count: int, at_once: int):
    process, began_s = psutil.Process(), time.monotonic()
    threads, files = threading.active_count(), process.num_fds()
    drawing, side = await soak(server, count, at_once)
    facts = {
        "client_classes": len(SIDES),
        "answers": count,
        "at_once": at_once,
        "seconds": round(time.monotonic() - began_s, 1),
        "requests": sum(drawing.attempts.values()),
        "faults": sum(drawing.drawn.values()) - drawing.drawn[None],
        "failed": side.totals.failed,
        "more_files": process.num_fds() - files,
        "open_connections": server.open_connections,
        "seed": SEED,
    }
    print(facts)
    assert eventually(lambda: not pumping())
    pools = 4 * len(SIDES)  # with and without retries, for threads and for the loop
    assert facts["open_connections"] <= 4 * at_once + pools, facts
    assert facts["more_files"] <= 8 * at_once + 2 * pools + 40, facts
    # Those of the executor and of idle connections stay.
    assert eventually(
        lambda: threading.active_count() - threads <= at_once + server.open_connections + 4
    )
    note_soak(f"faults-{at_once}", facts)
