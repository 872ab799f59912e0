"""`redact=` over a real socket: what the host sees, what the user sees, what a failure does."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.delegates import FallbackDelegate, LocalDelegate, OpenAIDelegate
from langchain_relay.engine.ledger import MemoryLedger
from langchain_relay.errors import RedactionFailed, UsageMistake
from langchain_relay.testing import ScriptedLocal
from tests.faults import Fault, FaultServer, Reply

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SECRET = "Ann Lee"
QUESTION = [SystemMessage(f"You help {SECRET}."), HumanMessage(f"I am {SECRET}. Who am I?")]


def hide(text: str) -> str:
    return text.replace(SECRET, "[NAME]")


def fails(text: str) -> str:
    raise LookupError("no model of names")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer("blue.") as server:
        yield server


def through_langchain(server: FaultServer) -> Any:
    return ChatOpenAI(model="gpt-5-mini", base_url=f"{server.url}/v1", api_key="test")


def through_a_client(server: FaultServer) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="test")
    return OpenAIDelegate(client, model="gpt-5-mini")


both_sides = pytest.mark.parametrize(
    "make", [through_langchain, through_a_client], ids=lambda make: make.__name__
)
both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


def relay(delegate: Any, *pieces: str, redact: Any = hide, **fields: Any) -> RelayChatModel:
    local = ScriptedLocal(*(pieces or (f"{SECRET} is ", "<call>20</call>", " so.")))
    settings: dict[str, Any] = {
        "prices": {"gpt-5-mini": (1, 2)},
        "budget": Budget(usd=9, calls=99),
        "ledger": MemoryLedger(),
        "max_retries": 0,
        **fields,
    }
    return RelayChatModel(model=local, delegate=delegate, redact=redact, **settings)


def asked(model: RelayChatModel, colour: str = "sync", **call: Any) -> AIMessage:
    if colour == "sync":
        return model.invoke(QUESTION, **call)
    return asyncio.run(model.ainvoke(QUESTION, **call))


def bodies(server: FaultServer) -> list[str]:
    return [json.dumps(one.body) for one in server.served]


@both_sides
@both_colours
def test_the_host_sees_the_redacted_text_and_nobody_else(
    server: FaultServer, make: Any, colour: str
):
    model = relay(make(server))
    message = asked(model, colour)
    (body,) = bodies(server)
    assert SECRET not in body
    assert "You help [NAME]." in body
    assert "I am [NAME]. Who am I?" in body
    assert "[NAME] is" in body, "the draft"
    assert message.text == f"{SECRET} is blue. so."
    local: Any = model.model
    assert local.prompts[0][-1].content.endswith(f"I am {SECRET}. Who am I?")
    assert local.contexts[0].startswith(f"{SECRET} is ")


@both_sides
def test_the_whole_answer_of_delegation_always_is_redacted(server: FaultServer, make: Any):
    message = asked(relay(make(server)), delegation="always")
    assert message.text.startswith("blue.")
    assert SECRET not in bodies(server)[0]


def test_what_a_host_wrote_is_redacted_when_it_is_sent_again(server: FaultServer):
    server.script(
        Reply(f"of {SECRET} and", fault=Fault.TRUNCATED, fault_after=3), Reply(" more."), "last."
    )
    model = relay(
        through_a_client(server),
        "It is ",
        "<call>20</call>",
        " so ",
        "<call>9</call>",
        max_retries=1,
    )
    message = asked(model)
    assert message.text == f"It is of {SECRET} more. so last."
    assert len(server.served) == 3
    assert not any(SECRET in body for body in bodies(server))


def test_a_span_is_not_unredacted(server: FaultServer):
    server.script("called [NAME].")
    assert asked(relay(through_a_client(server))).text == f"{SECRET} is called [NAME]. so."


def test_a_host_that_repeats_the_redacted_draft_is_trimmed(server: FaultServer):
    draft = f"Today we talk about {SECRET} and about "
    server.script("Today we talk about [NAME] and about blue light.")
    model = relay(through_a_client(server), draft, "<call>20</call>", " so.")
    message = asked(model)
    assert message.text == f"{draft}blue light. so."


def test_successive_requests_begin_alike_and_each_message_is_redacted_once(server: FaultServer):
    seen: list[str] = []

    def numbered(text: str) -> str:
        """Not the same twice, as hooks that make up names are."""
        seen.append(text)
        return text.replace(SECRET, f"[NAME {len(seen)}]")

    pieces = ("a ", "<call>5</call>", "b ", "<call>5</call>", "c ", "<call>5</call>")
    asked(relay(through_a_client(server), *pieces, redact=numbered))
    assert len(server.served) == 3
    assert len({json.dumps(one.body["messages"][0]) for one in server.served}) == 1
    assert (
        len({re.split("\n", one.body["messages"][1]["content"])[0] for one in server.served}) == 1
    )
    assert sum(SECRET in text for text in seen) == 2


def test_the_prompt_is_reserved_as_it_is_sent(server: FaultServer):
    long = RelayChatModel(
        model=ScriptedLocal("a ", "<call>5</call>"),
        delegate=through_a_client(server),
        prices={"gpt-5-mini": (1, 2)},
        budget=Budget(usd="0.0005"),
        redact=lambda text: text[:20],
    )
    assert relay_report(long.invoke("why " * 1_000)).calls == 1


def test_a_trace_shows_what_was_sent(server: FaultServer):
    traced: list[str] = []

    class Tracer(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            if kwargs.get("parent_run_id"):
                traced.append(str(messages))

    relay(through_a_client(server)).invoke(QUESTION, {"callbacks": [Tracer()]})
    assert len(traced) == 1
    assert SECRET not in traced[0]


# --- a hook that fails --------------------------------------------------------------------------


@both_sides
@both_colours
@pytest.mark.parametrize(
    ("hook", "says"),
    [(fails, "LookupError: no model of names"), (lambda text: None, "NoneType")],
    ids=["raises", "returns None"],
)
def test_a_hook_that_fails_blocks_the_call_and_not_the_answer(
    server: FaultServer, make: Any, colour: str, hook: Any, says: str
):
    model = relay(make(server), redact=hook)
    message = asked(model, colour)
    assert message.text == f"{SECRET} is  so."
    assert server.served == []
    _, failed = message.response_metadata["relay"]["events"]
    assert (failed["type"], failed["error_type"]) == ("relay.call.failed", "RedactionFailed")
    assert says in failed["error"]
    assert failed["attempts"] == 0
    report = relay_report(message)
    assert (report.cost_nanousd, report.charges) == (0, ())
    ledger: Any = model.ledger
    assert not ledger._open


@both_colours
def test_it_is_raised_where_failures_are(server: FaultServer, colour: str):
    model = relay(through_a_client(server), redact=fails, on_delegate_error="raise")
    with pytest.raises(RedactionFailed, match="nothing was sent"):
        asked(model, colour)
    assert server.served == []


def test_it_does_not_open_the_breaker(server: FaultServer):
    failing = relay(through_a_client(server), redact=fails)
    for _ in range(9):
        asked(failing)
    asked(relay(through_a_client(server)))
    assert len(server.served) == 1


def test_a_hook_that_fails_later_on_a_retry_keeps_what_came(server: FaultServer):
    def fails_on_blue(text: str) -> str:
        assert "blue" not in text
        return text

    server.script(Reply("blue light", fault=Fault.TRUNCATED, fault_after=1), "never asked")
    message = asked(relay(through_a_client(server), redact=fails_on_blue, max_retries=1))
    assert message.text == f"{SECRET} is blue so."
    assert len(server.served) == 1
    assert len(relay_report(message).charges) == 1


# --- who is shown the original ------------------------------------------------------------------


def test_a_local_delegate_is_shown_the_original(server: FaultServer):
    expert = ScriptedLocal("blue", ".")
    message = asked(relay(LocalDelegate(expert)))
    assert message.text == f"{SECRET} is blue. so."
    assert SECRET in expert.prompts[0][-1].content


def test_a_local_fallback_takes_over_where_the_hook_fails(server: FaultServer):
    hosted = FallbackDelegate(through_a_client(server), LocalDelegate(ScriptedLocal("blue", ".")))
    assert asked(relay(hosted, redact=fails)).text == f"{SECRET} is blue. so."
    assert server.served == []


# --- colours ------------------------------------------------------------------------------------


async def test_a_slow_hook_does_not_stop_the_event_loop(server: FaultServer):
    def slow(text: str) -> str:
        assert threading.current_thread() is not threading.main_thread()
        hidden.append(text)
        before, end = ticks, time.monotonic() + 10
        time.sleep(0.8)
        while ticks < before + 5 and time.monotonic() < end:
            time.sleep(0.01)
        assert ticks >= before + 5, "the loop stands still"
        return text

    ticks, hidden = 0, list[str]()

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    message = await relay(through_a_client(server), redact=slow, timeout=1.5).ainvoke(QUESTION)
    ticking.cancel()
    assert message.text == f"{SECRET} is blue. so.", "the hook's time is not the host's"
    assert len(hidden) >= 2


@pytest.mark.parametrize("wrong", ["regex", 5])
def test_what_is_no_function_is_refused(server: FaultServer, wrong: Any):
    with pytest.raises(UsageMistake, match="redact="):
        relay(through_a_client(server), redact=wrong)


def test_a_coroutine_function_is_refused(server: FaultServer):
    async def hook(text: str) -> str:
        return text

    with pytest.raises(UsageMistake, match="plain function"):
        relay(through_a_client(server), redact=hook)


def test_the_hook_is_part_of_what_identifies_a_model(server: FaultServer):
    plain, hidden = relay(through_a_client(server), redact=None), relay(through_a_client(server))
    assert plain._identifying_params != hidden._identifying_params
