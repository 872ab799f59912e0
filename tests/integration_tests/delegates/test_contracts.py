"""What leaves and what comes back for every client class, sync, async and through the relay.

The classes' own packages build and send the requests; a real HTTP server reads them. The names of
the hosts are real and lead to that server.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.engine.errors import DelegateError
from langchain_relay.engine.values import Delegate, Usage
from langchain_relay.testing import ScriptedLocal
from tests.faults import STATUS, Fault, FaultServer, Reply
from tests.integration_tests.delegates import older_openai
from tests.integration_tests.delegates.contracts import (
    ALL,
    ATTEMPT,
    CHAT_OPENAI,
    OF_EACH_CLASS,
    OF_EACH_SDK,
    OLDER_OPENAI,
    RAW,
    REPORTED,
    SHOWN,
    At,
    Contract,
)
from tests.integration_tests.delegates.transports import Colour, pieces_and_error, stream, text

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SPAN = " of Rayleigh scattering."
USAGE = Usage(31, 3)

here = OLDER_OPENAI if older_openai.INSIDE else ALL
both_colours = pytest.mark.parametrize("colour", ["sync", "async"])
every_contract = pytest.mark.parametrize("contract", here, ids=lambda contract: contract.name)
one_of_each_class = pytest.mark.parametrize(
    "contract", [one for one in OF_EACH_CLASS if one in here], ids=lambda contract: contract.name
)
one_of_each_sdk = pytest.mark.parametrize(
    "contract", [one for one in OF_EACH_SDK if one in here], ids=lambda contract: contract.name
)


@pytest.fixture(autouse=True, scope="module")
def _no_garbage_for_others() -> Iterator[None]:
    """What clients say when they are collected is not for a test of another file."""
    yield
    gc.collect()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def at(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> At:
    """Every host's name is the fault server's address."""
    resolved = socket.getaddrinfo
    port = int(server.url.rpartition(":")[2])

    def ours(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolved("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", ours)
    return lambda host: f"http://{host}:{port}"


def made(contract: Contract, at: At, monkeypatch: pytest.MonkeyPatch) -> Delegate:
    for name, value in contract.env(at).items():
        monkeypatch.setenv(name, value)
    return contract.make(at)


def reply(contract: Contract) -> Reply:
    return Reply(SHOWN * contract.echoes + SPAN, usage=(31, 3), model=REPORTED)


# --- the request and the span -------------------------------------------------------------------


@both_colours
@every_contract
def test_the_request_is_exactly_this_and_the_span_comes_back(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(reply(contract))
    deltas = stream(delegate, ATTEMPT, colour)
    (served,) = server.served
    # LiteLLM's own client may send a request twice.
    assert (delegate.mode, delegate.worst_attempts) == (contract.mode, 1 + contract.litellm)
    assert served.path == contract.path
    assert served.body == contract.body
    assert served.limit == ATTEMPT.max_tokens
    assert text(deltas) == SPAN
    *_, usage = [delta.usage for delta in deltas if delta.usage]
    assert (usage.input_tokens, usage.output_tokens) == (31, 3)
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]
    assert {delta.model for delta in deltas} - {None} == {contract.reports}


@both_colours
@one_of_each_class
def test_without_a_draft_nothing_is_added(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(Reply(SPAN))
    assert text(stream(delegate, replace(ATTEMPT, draft=" "), colour)) == SPAN
    sent = str(server.served[0].body)
    assert "draft" not in sent
    assert not any(flag in sent for flag in ("'prefix'", "'partial'", "continue_final_message"))
    assert sent.count("assistant") == sent.count("'model', ") == 0 or contract.mode == "completion"


@both_colours
@one_of_each_class
def test_a_reply_that_was_cut_at_the_limit_says_so(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(Reply(" one two three", model=REPORTED))
    deltas = stream(delegate, replace(ATTEMPT, max_tokens=2), colour)
    assert server.served[0].limit == 2
    assert text(deltas) == " one two"
    assert [delta.finish for delta in deltas if delta.finish] == ["length"]


@both_colours
@one_of_each_class
def test_the_model_of_one_call_wins_and_the_next_call_has_its_own(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(Reply(SPAN))
    provider = delegate.model.rpartition("/")[0] if contract.litellm else ""
    other = f"{provider}/other" if provider else "other"
    stream(delegate, replace(ATTEMPT, model=other, timeout_s=20.0), colour)
    stream(delegate, ATTEMPT, colour)
    assert [served.model for served in server.served] == ["other", contract_model(contract)]


def contract_model(contract: Contract) -> str | None:
    named = contract.path.rpartition("/")[2].partition(":")[0]  # Gemini's
    model: str | None = contract.body.get("model", named)
    return model


# --- failures -----------------------------------------------------------------------------------

FAULTS = [
    Fault.UNAUTHORIZED,
    Fault.RATE_LIMITED_SECONDS,
    Fault.SERVER_ERROR,
    Fault.OVERLOADED,
]


@both_colours
@one_of_each_class
def test_a_failure_is_one_request_that_costs_nothing(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    for number, fault in enumerate(FAULTS, start=1):
        server.script(Reply(fault=fault, retry_after_s=3))
        deltas, error = pieces_and_error(delegate, ATTEMPT, colour)
        assert len(server.served) == number, fault
        assert isinstance(error, DelegateError)
        assert (text(deltas), error.sent, error.answered) == ("", False, True), fault
        assert error.retryable == (STATUS[fault] >= 429), fault
        waits = contract.waits and fault is Fault.RATE_LIMITED_SECONDS
        assert error.retry_after_s == (3.0 if waits else None), fault


@both_colours
@one_of_each_class
def test_a_stream_without_an_end_is_truncated(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(Reply(" one two three", fault=Fault.TRUNCATED, fault_after=2))
    deltas, error = pieces_and_error(delegate, ATTEMPT, colour)
    assert text(deltas) == " one two"
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent) == (True, True)


@both_colours
@one_of_each_class
def test_a_host_that_is_not_there_is_owed_nothing(
    server: FaultServer, at: At, contract: Contract, colour: Colour, monkeypatch
):
    with socket.socket() as bound:  # and nobody else can listen there meanwhile
        bound.bind(("127.0.0.1", 0))
        closed = bound.getsockname()[1]
        delegate = made(contract, lambda host: f"http://{host}:{closed}", monkeypatch)
        _, error = pieces_and_error(delegate, ATTEMPT, colour)
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent, error.answered) == (True, False, False)


# --- connections --------------------------------------------------------------------------------


AIOHTTP = find_spec("aiohttp") is not None
"""google-genai reads with it on an event loop, else with httpx."""


@one_of_each_sdk
def test_each_event_loop_has_one_connection_and_takes_it_along(
    server: FaultServer, at: At, contract: Contract, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(reply(contract))

    async def twice() -> None:
        for _ in range(2):
            deltas = [delta async for delta in delegate.astream(ATTEMPT)]
            assert text(deltas) == SPAN

    for _ in range(3):
        asyncio.run(twice())
    assert len(server.served) == 6
    connections = len({served.client for served in server.served})
    if contract.litellm:  # its cache of clients drops one now and then
        assert 3 <= connections <= 6
    else:
        assert connections == (6 if uses_up(contract) else 3)
    # The last loop's stays until another loop comes. LiteLLM keeps clients for an hour, and
    # google-genai without aiohttp closes those of an ended loop in vain.
    keeps = contract.litellm or (contract.name.startswith("ChatGoogle") and not AIOHTTP)
    assert gone(server, but=3 if keeps else 1)


def uses_up(contract: Contract) -> bool:
    """langchain-mistralai and openai 2 stop reading at `[DONE]`, before the end of the body."""
    older = older_openai.INSIDE and contract in (*CHAT_OPENAI, *RAW)
    return older or contract.name == "ChatMistralAI"


def gone(server: FaultServer, *, but: int, timeout_s: float = 10.0) -> bool:
    """Whether all connections but so many were closed by the clients."""
    gc.collect()
    end = time.monotonic() + timeout_s
    while server.open_connections > but and time.monotonic() < end:
        time.sleep(0.01)
    return server.open_connections <= but


LONG = Reply(" word" * 500, fault=Fault.SLOW_TOKENS, delay_s=0.05)  # 25 s


@one_of_each_sdk
def test_closing_early_ends_the_stream(
    server: FaultServer, at: At, contract: Contract, monkeypatch
):
    delegate = made(contract, at, monkeypatch)
    server.script(LONG)
    stream(delegate, replace(ATTEMPT, max_tokens=500), "sync", until=2)
    assert server.settled(timeout_s=10)
    assert server.served[0].hung_up


@one_of_each_sdk
async def test_closing_early_ends_the_stream_while_the_loop_goes_on(
    server: FaultServer, at: At, contract: Contract, monkeypatch
):
    server.script(LONG)
    deltas: Any = made(contract, at, monkeypatch).astream(replace(ATTEMPT, max_tokens=500))
    await anext(deltas)
    await deltas.aclose()
    assert await asyncio.to_thread(server.settled, 10)
    assert server.served[0].hung_up


# --- the whole relay ----------------------------------------------------------------------------

PATHS = ["invoke", "stream", "ainvoke", "astream"]


def answer(model: RelayChatModel, path: str) -> Any:
    async def added_up() -> Any:
        if path == "ainvoke":
            return await model.ainvoke("Why?")
        chunks = [chunk async for chunk in model.astream("Why?")]
        return sum(chunks[1:], start=chunks[0])

    if path in {"ainvoke", "astream"}:
        return asyncio.run(added_up())
    if path == "invoke":
        return model.invoke("Why?")
    first, *rest = model.stream("Why?")
    return sum(rest, start=first)


@pytest.mark.parametrize("path", PATHS)
@one_of_each_class
def test_the_span_stands_in_the_answer_and_its_usage_in_the_charge(
    server: FaultServer, at: At, contract: Contract, path: str, monkeypatch
):
    repeated = "It is" * contract.echoes
    server.script(Reply(f"{repeated} blue light.", usage=(31, 3), model=REPORTED))
    local = ScriptedLocal("It is", "<call>8</call>", " So.")
    delegate = made(contract, at, monkeypatch)
    model = RelayChatModel(model=local, delegate=delegate)
    message = answer(model, path)
    # A completion endpoint's end is the end of the answer.
    assert message.text == "It is blue light." + " So." * (contract.mode != "completion")
    (served,) = server.served
    assert served.limit == 8
    report = relay_report(message)
    assert [span.text for span in report.spans if span.author == "delegate"] == [" blue light."]
    (charge,) = report.charges
    assert (charge.input_tokens, charge.output_tokens, charge.outcome) == (31, 3, "stop")


# --- LiteLLM and the older openai ---------------------------------------------------------------


@pytest.mark.timeout(900)
def test_litellm_and_an_older_openai_keep_the_contracts_too():
    passed = older_openai.passed_inside(__file__, "not older_openai")
    classes = sum(one in OLDER_OPENAI for one in OF_EACH_CLASS)
    sdks = sum(one in OLDER_OPENAI for one in OF_EACH_SDK)
    expected = 2 * len(OLDER_OPENAI) + (2 * 6 + len(PATHS)) * classes + 3 * sdks
    assert passed == expected
