"""`LANGCHAIN_RELAY_OFFLINE`: a hosted model gets no request, and the local model goes on."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from rich.console import Console

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.cli import doctor
from langchain_relay.delegates import FallbackDelegate, LocalDelegate, OpenAIDelegate
from langchain_relay.engine.ledger import MemoryLedger
from langchain_relay.errors import Offline
from langchain_relay.offline import VARIABLE
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal
from tests.faults import FaultServer

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HOST = "api.hosted.example"
"""A name that stands for this machine here, and looks like any other."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    resolve = socket.getaddrinfo

    def here(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return resolve("127.0.0.1" if name == HOST else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    with FaultServer("blue.") as server:
        yield server


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


def hosted_url(server: FaultServer) -> str:
    return f"http://{HOST}:{urlsplit(server.url).port}/v1"


def through_langchain(server: FaultServer, url: str | None = None) -> Any:
    return ChatOpenAI(model="gpt-5-mini", base_url=url or hosted_url(server), api_key="test")


def through_a_client(server: FaultServer, url: str | None = None) -> Any:
    client = openai.OpenAI(base_url=url or hosted_url(server), api_key="test")
    return OpenAIDelegate(client, model="gpt-5-mini")


both_sides = pytest.mark.parametrize(
    "make", [through_langchain, through_a_client], ids=lambda make: make.__name__
)
both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


def relay(delegate: Any, *pieces: str, **fields: Any) -> RelayChatModel:
    settings: dict[str, Any] = {
        "prices": {"gpt-5-mini": (1, 2), "scripted": (1, 2)},
        "budget": Budget(usd=9, calls=99),
        "ledger": MemoryLedger(),
        "max_retries": 0,
        **fields,
    }
    local = ScriptedLocal(*(pieces or ("It is ", "<call>9</call>", "so.")))
    return RelayChatModel(model=local, delegate=delegate, **settings)


def asked(model: RelayChatModel, colour: str = "sync", **call: Any) -> AIMessage:
    if colour == "sync":
        return model.invoke("Why?", **call)
    return asyncio.run(model.ainvoke("Why?", **call))


@both_sides
@both_colours
def test_without_the_switch_the_host_is_asked(server: FaultServer, make: Any, colour: str):
    assert asked(relay(make(server)), colour).text == "It is blue.so."
    assert len(server.served) == 1


@both_sides
@both_colours
@pytest.mark.parametrize("delegation", ["auto", "always"])
def test_a_hosted_model_is_refused_before_anything_is_reserved_or_sent(
    server: FaultServer,
    switched_on: None,
    make: Any,
    colour: str,
    delegation: str,
    caplog: pytest.LogCaptureFixture,
):
    model = relay(make(server), "It is ", "<call>9</call>", "so ", "<call>9</call>", "it is.")
    with caplog.at_level(logging.WARNING):
        message = asked(model, colour, delegation=delegation)
    assert message.text == "It is so it is."
    assert server.served == []
    assert server.open_connections == 0
    (denied,) = message.response_metadata["relay"]["events"]
    assert (denied["type"], denied["reason"]) == ("relay.call.denied", "offline")
    report = relay_report(message)
    assert (report.calls, report.denied, report.cost_nanousd, report.charges) == (0, 1, 0, ())
    ledger: Any = model.ledger
    assert not ledger._open
    assert caplog.messages == [f"gpt-5-mini is not asked: {VARIABLE} is set"]


@both_colours
def test_it_is_raised_where_failures_are_and_not_where_refusals_are(
    server: FaultServer, switched_on: None, colour: str
):
    with pytest.raises(Offline, match=f"gpt-5-mini is not on this machine, and {VARIABLE} is set"):
        asked(relay(through_a_client(server), on_delegate_error="raise"), colour)
    for on_budget in ("raise", "stop"):
        message = asked(relay(through_a_client(server), on_budget=on_budget), colour)
        assert message.text == "It is so."


def test_it_does_not_open_the_breaker(server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    model = relay(through_a_client(server))
    monkeypatch.setenv(VARIABLE, "1")
    for _ in range(9):
        asked(model)
    monkeypatch.setenv(VARIABLE, "0")
    assert asked(model).text == "It is blue.so."
    assert len(server.served) == 1


def test_a_double_that_plays_a_hosted_model_is_refused_as_well(switched_on: None):
    hosted = ScriptedDelegate("blue")
    assert asked(relay(hosted)).text == "It is so."
    assert hosted.attempts == []


def test_a_local_delegate_is_asked(switched_on: None):
    assert asked(relay(LocalDelegate(ScriptedLocal("blue", ".")))).text == "It is blue.so."


@both_colours
def test_a_local_fallback_is_asked_in_a_hosted_models_place(
    server: FaultServer, switched_on: None, colour: str
):
    hosted = FallbackDelegate(through_a_client(server), LocalDelegate(ScriptedLocal("blue", ".")))
    message = asked(relay(hosted), colour)
    assert message.text == "It is blue.so."
    assert server.served == []
    assert relay_report(message).calls == 1


@both_sides
def test_a_server_at_a_loopback_address_is_asked(server: FaultServer, switched_on: None, make: Any):
    assert asked(relay(make(server, f"{server.url}/v1"))).text == "It is blue.so."
    assert len(server.served) == 1


def test_a_local_delegate_on_a_server_elsewhere_is_refused(switched_on: None):
    from langchain_relay.local import CompletionServerModel

    hosted = LocalDelegate(CompletionServerModel("http://gpu-box:8080"))
    message = asked(relay(hosted, budget=None))
    assert message.text == "It is so."
    assert message.response_metadata["relay"]["events"][0]["reason"] == "offline"


def test_a_probe_is_refused(server: FaultServer, switched_on: None):
    with pytest.raises(Offline, match="a probe of gpt-5-mini would leave this machine"):
        through_a_client(server).probe()
    with pytest.raises(Offline, match="a probe of gpt-5-mini"):
        asyncio.run(through_a_client(server).aprobe())
    assert server.served == []


def test_doctor_says_why_it_does_not_ask(
    server: FaultServer, switched_on: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", hosted_url(server))
    console = Console(record=True, width=200)
    well = doctor.report(doctor._hosted("openai:gpt-5-mini", None), console)
    said = console.export_text()
    assert not well
    assert VARIABLE in said
    assert server.served == []
