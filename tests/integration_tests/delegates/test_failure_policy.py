"""Retries, breaker and fallback over real sockets: what is asked how often, and what is kept."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, cast

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from langchain_relay import Budget, RelayChatModel, errors, relay_report
from langchain_relay.budget import Allowance
from langchain_relay.delegates import ChatModelDelegate, FallbackDelegate, OpenAIDelegate
from langchain_relay.delegates.breaker import Breakers
from langchain_relay.delegates.terms import Terms
from langchain_relay.delegates.wire import HostedSide
from langchain_relay.engine.errors import CircuitOpen, DelegateError, DelegateTimeout
from langchain_relay.engine.ledger import Account, Amount, MemoryLedger
from langchain_relay.engine.values import Delegate, SpanEnd, SpanPiece, SpanRequest
from langchain_relay.prices import UserPrice
from langchain_relay.testing import ScriptedLocal
from tests.integration_tests.delegates.transports import (
    MAKERS,
    Colour,
    Maker,
    attempt,
    chat_openai,
    pieces_and_error,
)
from tests.servers.openai_server import OpenAIServer, Reply

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

both_colours = pytest.mark.parametrize("colour", ["sync", "async"])
every_transport = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Manner = Literal["closes", "hangs", "header, closes", "header, hangs"]


@dataclass
class MuteHost:
    """Takes a connection and a request, and then says nothing, or no more than a header."""

    manner: Manner
    requests: int = 0
    port: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def listening(self) -> Iterator[MuteHost]:
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            self.port = listener.getsockname()[1]
            listener.settimeout(0.05)
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.stopping.set()
                thread.join()

    def _serve(self, listener: socket.socket) -> None:
        held: list[socket.socket] = []
        while not self.stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(5)
            with suppress(OSError):  # a client may leave
                self.requests += bool(connection.recv(65536))
                if self.manner.startswith("header"):
                    connection.sendall(HEADER)
            if self.manner.endswith("closes"):
                connection.close()
            else:
                held.append(connection)
        for connection in held:
            connection.close()


@pytest.fixture(params=["closes", "hangs", "header, closes", "header, hangs"])
def mute_host(request: pytest.FixtureRequest) -> Iterator[MuteHost]:
    with MuteHost(request.param).listening() as host:
        yield host


def at(server: MuteHost) -> OpenAIServer:
    """The makers of transports want no more of a server than its address."""
    return cast("OpenAIServer", server)


_BOUND: list[socket.socket] = []


def closed_port() -> str:
    """An address where nobody listens, and nobody else can: the port stays taken."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    _BOUND.append(bound)
    return f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@pytest.fixture(scope="module", autouse=True)
def _free_ports() -> Iterator[None]:
    yield
    while _BOUND:
        _BOUND.pop().close()


# --- what an attempt at a mute host is ----------------------------------------------------------


@both_colours
@every_transport
def test_a_mute_host_gets_one_request_and_it_is_known_whether_a_header_came(
    mute_host: MuteHost, make: Maker, colour: Colour
):
    _, error = pieces_and_error(make(at(mute_host)), attempt(timeout_s=1.5), colour)
    assert mute_host.requests == 1
    assert isinstance(error, DelegateError)
    assert error.retryable
    assert error.answered is mute_host.manner.startswith("header")
    assert isinstance(error, DelegateTimeout) == mute_host.manner.endswith("hangs")


@both_colours
@every_transport
def test_a_closed_port_answers_nothing(make: Maker, colour: Colour):
    host = MuteHost("closes", port=int(closed_port().split(":")[2].split("/")[0]))
    _, error = pieces_and_error(make(at(host)), attempt(), colour)
    assert isinstance(error, DelegateError)
    assert (error.answered, error.sent, error.retryable) == (False, False, True)


@both_colours
@every_transport
@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_an_error_status_is_an_answer(
    openai_server: OpenAIServer, make: Maker, colour: Colour, status: int
):
    openai_server.script(Reply(status=status))
    _, error = pieces_and_error(make(openai_server), attempt(), colour)
    assert isinstance(error, DelegateError)
    assert error.answered is True


@both_colours
def test_what_a_chat_model_cannot_put_into_a_request_costs_nothing(
    openai_server: OpenAIServer, colour: Colour
):
    from langchain_core.messages.base import BaseMessage

    class Odd(BaseMessage):
        type: str = "odd"

    delegate = ChatModelDelegate(chat_openai(openai_server))
    asked = replace(attempt(), messages=(Odd(content="what is this?"),))
    _, error = pieces_and_error(delegate, asked, colour)
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent, openai_server.requests) == (False, False, [])


@both_colours
def test_a_prompt_function_that_raises_costs_nothing(openai_server: OpenAIServer, colour: Colour):
    def prompt(messages: Any, draft: str) -> str:
        raise ValueError("no template for this")

    client = openai.OpenAI(base_url=openai_server.base_url, api_key="test")
    delegate = OpenAIDelegate(client, model="base", api="completions", prompt=prompt)
    _, error = pieces_and_error(delegate, attempt("It is"), colour)
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent, openai_server.requests) == (False, False, [])


# --- the breaker --------------------------------------------------------------------------------

ACCOUNT = Account("run", "r")
PRICE = UserPrice(Decimal(1), Decimal(2))


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def hand_over(
    delegate: Delegate,
    colour: Colour,
    breakers: Breakers,
    clock: Clock,
    *,
    run: Callable[[Any], Any] = asyncio.run,
    **facts: Any,
) -> tuple[SpanEnd, MemoryLedger]:
    ledger = MemoryLedger()
    settings: dict[str, Any] = {"max_retries": 0, "timeout_s": 10.0, **facts}
    terms = Terms(
        delegate=delegate,
        messages=(HumanMessage("Why?"),),
        model=None,
        price=PRICE,
        allowances=(Allowance(Budget(calls=99), ACCOUNT.key),),
        ledger=ledger,
        count=lambda text: len(text.split()),
        breakers=breakers,
        clock=clock,
        now=lambda: 0.0,
        **settings,
    )
    side = HostedSide(terms, parent=None)

    async def whole() -> Any:
        out: Any = await side.aopen(SpanRequest("c", "It is", 8, 8))
        while not isinstance(out, SpanEnd):
            out = await side.apull()
        return out

    if colour == "async":
        return run(whole()), ledger
    out: Any = side.open(SpanRequest("c", "It is", 8, 8))
    while not isinstance(out, SpanEnd):
        out = side.pull()
    return out, ledger


def test_a_dead_host_costs_one_probing_attempt_in_30_s_and_base_url():
    url, other_url = closed_port(), closed_port()
    assert url != other_url
    delegates: list[tuple[Delegate, Colour]] = [
        (OpenAIDelegate(openai.OpenAI(base_url=url, api_key="x"), model="a"), "sync"),
        (OpenAIDelegate(openai.AsyncOpenAI(base_url=url, api_key="x"), model="b"), "async"),
        (ChatModelDelegate(chat_openai(at(_At(url)), max_retries=2)), "async"),
        (ChatModelDelegate(chat_openai(at(_At(url + "/")))), "sync"),
    ]
    breakers, clock = Breakers(), Clock()
    tried: list[float] = []
    for second in range(100):
        clock.now = float(second)
        end, ledger = hand_over(*delegates[second % len(delegates)], breakers, clock)
        assert end.why == "failed"
        assert ledger.spent(ACCOUNT, now=0.0) == Amount()
        if end.charges:
            tried.append(clock.now)
        else:
            assert isinstance(end.error, CircuitOpen)
    assert tried == [0, 1, 2, 3, 4, 34, 64, 94]
    other = OpenAIDelegate(openai.OpenAI(base_url=other_url, api_key="x"), model="a")
    end, _ = hand_over(other, "sync", breakers, clock)
    assert len(end.charges) == 1


class _At(MuteHost):
    def __init__(self, url: str) -> None:
        super().__init__("closes")
        self.url = url

    @property
    def base_url(self) -> str:
        return self.url


@both_colours
@every_transport
def test_a_host_that_hangs_up_is_asked_five_times_and_then_left_alone(make: Maker, colour: Colour):
    with MuteHost("closes").listening() as host:
        delegate, breakers, clock = make(at(host)), Breakers(), Clock()
        for _ in range(20):
            hand_over(delegate, colour, breakers, clock)
        assert host.requests == 5
        clock.now = 30.0
        for _ in range(20):
            hand_over(delegate, colour, breakers, clock)
        assert host.requests == 6


@both_colours
@every_transport
def test_a_host_that_is_silent_until_the_deadline_counts_as_well(make: Maker, colour: Colour):
    with MuteHost("hangs").listening() as host:
        delegate, breakers, clock = make(at(host)), Breakers(), Clock()
        ends = [hand_over(delegate, colour, breakers, clock, timeout_s=0.15)[0] for _ in range(6)]
        assert [len(end.charges) for end in ends] == [1, 1, 1, 1, 1, 0]
        assert isinstance(ends[-1].error, CircuitOpen)


@both_colours
@pytest.mark.parametrize("make", MAKERS[1:], ids=lambda make: make.__name__)
def test_a_host_that_sent_a_header_before_the_deadline_is_not_dead(make: Maker, colour: Colour):
    with MuteHost("header, hangs").listening() as host, asyncio.Runner() as runner:
        delegate, breakers, clock = make(at(host)), Breakers(), Clock()

        def ended(timeout_s: float) -> SpanEnd:
            return hand_over(
                delegate, colour, breakers, clock, timeout_s=timeout_s, run=runner.run
            )[0]

        ended(2.0)  # builds the client of this event loop
        ends = [ended(0.5) for _ in range(5)]
        assert host.requests == 6
        assert not any(isinstance(end.error, CircuitOpen) for end in ends)


@both_colours
@every_transport
def test_a_host_that_answers_again_is_used_again(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    delegate, breakers, clock = make(openai_server), Breakers(), Clock()
    host = delegate.fingerprint["base_url"].rstrip("/")
    for _ in range(5):
        breakers.failed(host, 0.0)
    assert hand_over(delegate, colour, breakers, clock)[0].why == "failed"
    clock.now = 30.0
    for _ in range(3):
        assert hand_over(delegate, colour, breakers, clock)[0].why == "stop"
    assert len(openai_server.requests) == 3


def test_of_many_answers_at_once_one_probes(openai_server: OpenAIServer):
    openai_server.script(Reply("ok", delay_s=0.3))
    delegate, breakers = MAKERS[1](openai_server), Breakers()
    for _ in range(5):
        breakers.failed(delegate.fingerprint["base_url"].rstrip("/"), 0.0)
    clock, ends = Clock(30.0), []
    ready = threading.Barrier(8)

    def one() -> None:
        ready.wait()
        ends.append(hand_over(delegate, "sync", breakers, clock)[0])

    # The probing attempt is answered only after all have asked.
    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = [end for end in ends if end.charges and not end.charges[0].released]
    assert len(openai_server.requests) == len(sent)
    assert sum(isinstance(end.error, CircuitOpen) for end in ends) == 8 - len(sent)
    assert len(sent) >= 1


# --- retries ------------------------------------------------------------------------------------


@every_transport
@pytest.mark.parametrize(("colour", "date"), [("sync", False), ("async", True)])
def test_a_wait_that_the_host_asks_for_is_kept_and_one_that_does_not_fit_is_not_begun(
    openai_server: OpenAIServer, make: Maker, colour: Colour, date: bool
):
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    def busy(seconds: int) -> Reply:
        # A date has whole seconds: the next one but one is at least a second away.
        then = datetime.now(tz=UTC) + timedelta(seconds=seconds + 1)
        value = format_datetime(then, usegmt=True) if date else str(seconds)
        return Reply(status=429, headers={"Retry-After": value})

    delegate = make(openai_server)
    openai_server.script(busy(1), "fine")
    before = time.monotonic()
    real: dict[str, Any] = {"max_retries": 2, "timeout_s": 10.0}
    end, _ = hand_over(delegate, colour, Breakers(), Clock(), **real)
    assert (end.why, len(end.charges)) == ("stop", 2)
    assert time.monotonic() - before >= 0.9
    openai_server.script(busy(60), "fine")
    end, _ = hand_over(delegate, colour, Breakers(), Clock(), **real)
    assert (end.why, len(end.charges)) == ("failed", 1)


# --- the next model -----------------------------------------------------------------------------

WAYS = ["invoke", "stream", "ainvoke", "astream"]


def answer(model: RelayChatModel, way: str) -> AIMessage:
    async def awhole() -> AIMessage:
        if way == "ainvoke":
            return await model.ainvoke("How is the sky?")
        added: AIMessageChunk | None = None
        async for chunk in model.astream("How is the sky?"):
            added = chunk if added is None else added + chunk
        assert added is not None
        return added

    if way.startswith("a"):
        return asyncio.run(awhole())
    if way == "invoke":
        return model.invoke("How is the sky?")
    first, *rest = model.stream("How is the sky?")
    for chunk in rest:
        first += chunk
    return first


def relay(*delegates: Delegate, **settings: Any) -> RelayChatModel:
    return RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", " so."),
        delegate=FallbackDelegate(*delegates) if len(delegates) > 1 else delegates[0],
        **{
            "prices": {"gpt-5-mini": (1, 2), "b": (1, 2)},
            "budget": Budget(usd=1),
            "max_retries": 0,
            **settings,
        },
    )


@pytest.mark.parametrize("way", WAYS)
@every_transport
@pytest.mark.parametrize("fault", ["end", "drop", "malformed"])
def test_the_second_model_finishes_a_span_whose_first_was_cut(
    openai_server: OpenAIServer, make: Maker, way: str, fault: Any
):
    openai_server.script(Reply("blue and very wide", fault=fault, fault_after=2))
    with OpenAIServer(Reply(" and wide", usage=(30, 2))) as other:
        model = relay(make(openai_server), make(other, name="b"))
        got = answer(model, way)
        assert got.text == "It is blue and and wide so."
        (asked,) = other.bodies
    report = relay_report(got)
    spans = [(span.text, span.model) for span in report.spans if span.author == "delegate"]
    assert spans == [("blue and", "gpt-5-mini"), (" and wide", "b")]
    cut, finished = report.charges
    assert (cut.model, cut.estimated, cut.released) == ("gpt-5-mini", True, False)
    assert (finished.model, finished.cost_nanousd) == ("b", 30 * 1000 + 2 * 2000)
    limits = ("max_completion_tokens", "max_tokens")
    assert [asked[name] for name in limits if name in asked] == [6]
    assert "<draft>It is blue and" in str(asked["messages"])
    events = [event["type"] for event in got.response_metadata["relay"]["events"]]
    assert events == ["relay.call.started", "relay.call.finished"]


@pytest.mark.parametrize("way", WAYS)
@every_transport
def test_a_dead_first_model_is_passed_over_once_its_breaker_is_open(make: Maker, way: str):
    with OpenAIServer("blue") as other:
        dead = _At(closed_port())
        model = relay(make(at(dead)), make(other, name="b"))
        tried = [[c.model for c in relay_report(answer(model, way)).charges] for _ in range(7)]
        assert tried == [["gpt-5-mini", "b"]] * 5 + [["b"]] * 2
        assert len(other.requests) == 7


@pytest.mark.parametrize("way", WAYS)
def test_a_dead_host_alone_starts_fails_and_lets_the_local_model_go_on(way: str):
    delegate = MAKERS[1](at(_At(closed_port())))
    model = relay(delegate)
    for _ in range(5):
        answer(model, way)
    got = answer(model, way)
    assert got.text == "It is  so."
    started, failed = got.response_metadata["relay"]["events"]
    assert (started["type"], failed["type"]) == ("relay.call.started", "relay.call.failed")
    assert (failed["error_type"], failed["attempts"], failed["cost_nanousd"]) == (
        "CircuitOpen",
        0,
        0,
    )
    assert failed["error"].startswith("circuit_open: ")
    strict = relay(delegate, on_delegate_error="raise")
    with pytest.raises(errors.CircuitOpen):
        answer(strict, way)


def test_pieces_say_who_wrote_them(openai_server: OpenAIServer):
    openai_server.script(Reply("blue", usage=(9, 1)))
    side = HostedSide(
        Terms(
            delegate=MAKERS[1](openai_server), messages=(HumanMessage("Why?"),), model=None,
            price=PRICE, allowances=(), ledger=MemoryLedger(), timeout_s=5, max_retries=0,
            count=len,
        ),
        parent=None,
    )  # fmt: skip
    side.open(SpanRequest("c", "It is ", 80, 80))
    piece = side.pull()
    assert isinstance(piece, SpanPiece)
    assert piece.model == "gpt-5-mini"
    side.close()
