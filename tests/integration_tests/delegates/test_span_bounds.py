"""How far a hosted model gets: the limit sent, cuts on this side, stop strings, reasoning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import quicktok
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.delegates import (
    ChatModelDelegate,
    FallbackDelegate,
    OpenAIDelegate,
    handover,
)
from langchain_relay.delegates.handover import DRAIN_PIECES
from langchain_relay.engine.ledger import MemoryLedger
from langchain_relay.errors import UsageMistake
from langchain_relay.policies import SwitchCues
from langchain_relay.testing import ScriptedLocal
from tests.faults import Fault, FaultServer, Reply
from tests.faults.script import word_ids

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

MODEL = "gpt-5-mini"
UNKNOWN = "some-model"
"""A model whose tokenizer nobody knows."""
PRICES = {MODEL: (1, 2), UNKNOWN: (1, 2)}
LONG = "internationalization "
ENDLESS = "word " * 60_000
"""More than the sockets hold, so that a host whose client has left notices before it is through."""
COUNT = quicktok.get_encoding("o200k_base").encode_ordinary


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def through_langchain(server: FaultServer, model: str = MODEL, **options: Any) -> Any:
    chat = ChatOpenAI(model=model, base_url=f"{server.url}/v1", api_key="test")
    return ChatModelDelegate(chat, **options)


def through_a_client(server: FaultServer, model: str = MODEL, **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="test")
    return OpenAIDelegate(client, model=model, **options)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usage behind a cut is read though the machine is busy."""
    monkeypatch.setattr(handover, "DRAIN_S", 10.0)


both_sides = pytest.mark.parametrize(
    "make", [through_langchain, through_a_client], ids=lambda make: make.__name__
)
both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


def relay(delegate: Any, *pieces: str, **fields: Any) -> RelayChatModel:
    local = ScriptedLocal(*(pieces or ("It is ", "<call>8</call>", " so.")))
    settings: dict[str, Any] = {
        "prices": PRICES,
        "max_retries": 0,
        "budget": Budget(usd=9, calls=99),
        "ledger": MemoryLedger(),
        **fields,
    }
    return RelayChatModel(model=local, delegate=delegate, **settings)


def asked(model: RelayChatModel, colour: str = "sync", question: str = "Why?") -> AIMessage:
    return model.invoke(question) if colour == "sync" else asyncio.run(model.ainvoke(question))


def limit(body: dict[str, Any]) -> int:
    (name,) = {"max_tokens", "max_completion_tokens"} & set(body)
    return int(body[name])


# --- the limit that is sent ---------------------------------------------------------------------


@both_sides
@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, 40),
        ({"max_span_tokens": 7}, 7),
        ({"max_tokens": 12}, 12 - 2),  # two words are written
        ({"budget": Budget(tokens=5)}, 5),
        ({"budget": Budget(tokens=5), "max_span_tokens": 3}, 3),
    ],
)
def test_the_limit_sent_is_the_clamped_n(
    server: FaultServer, make: Any, fields: dict[str, Any], sent: int
):
    server.script("blue.")
    message = asked(relay(make(server), "It is", " so ", "<call>40</call>", "!", **fields))
    assert limit(server.served[0].body) == sent
    started, _ = message.response_metadata["relay"]["events"]
    assert (started["n"], started["requested_n"]) == (sent, 40)


ONE_REPLY: dict[str, dict[str, Any]] = {
    "n": {"n": 3},
    "max_tokens": {"max_tokens": 1000},
    "extra_body": {"extra_body": {"max_tokens": 1000, "n": 3, "user": "kept"}},
    "model_kwargs": {"model_kwargs": {"best_of": 3, "stream": False, "user": "kept"}},
    "responses": {"use_responses_api": True, "max_tokens": 1000},
    "responses_body": {"use_responses_api": True, "extra_body": {"max_output_tokens": 1000}},
}


@pytest.mark.parametrize("name", ONE_REPLY)
@both_colours
def test_a_request_is_for_one_reply_of_n_tokens_whatever_the_chat_model_was_set_to(
    server: FaultServer, name: str, colour: str
):
    server.script("blue.")
    chat = ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="test", **ONE_REPLY[name])
    message = asked(relay(chat), colour)
    assert message.text == "It is blue. so."
    body = server.served[0].body
    limits = {key: body[key] for key in body if key.startswith("max_")}
    assert list(limits.values()) == [8]
    assert not {"n", "best_of"} & set(body)
    assert body["stream"] is True
    assert ("user" in body) == ("kept" in str(ONE_REPLY[name]))


@both_colours
@pytest.mark.parametrize(("n", "thinks"), [(8, False), (1024, False), (1025, True)])
def test_claude_thinks_only_where_its_budget_is_below_n(
    server: FaultServer, colour: str, n: int, *, thinks: bool
):
    server.script("blue.")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    names: dict[str, Any] = {"model": "claude-sonnet-4-5", "max_tokens": 4000}  # users' aliases
    chat = ChatAnthropic(base_url=server.url, api_key="test", thinking=thinking, **names)
    pieces = "It is ", f"<call>{n}</call>", " so."
    message = asked(relay(chat, *pieces, max_span_tokens=2000, budget=None), colour)
    assert message.text == "It is blue. so."
    body = server.served[0].body
    assert body["max_tokens"] == n
    assert body.get("thinking") == (thinking if thinks else None)


@pytest.mark.parametrize("name", ["n", "best_of", "max_tokens", "max_output_tokens", "stream"])
def test_fields_that_would_win_over_the_relays_are_refused(server: FaultServer, name: str):
    with pytest.raises(UsageMistake, match=f"extra_body has {name}, .* max_span_tokens"):
        through_a_client(server, extra_body={name: 3})


# --- the cut on this side -----------------------------------------------------------------------


@both_sides
@both_colours
@pytest.mark.usefixtures("patient")
def test_a_host_that_ignores_the_limit_is_cut_at_exactly_n(
    server: FaultServer, make: Any, colour: str
):
    server.script(Reply(LONG * 30, fault=Fault.IGNORED_LIMIT))
    message = asked(relay(make(server)), colour)
    (span,) = (span for span in relay_report(message).spans if span.author == "delegate")
    assert COUNT(span.text) == COUNT(LONG * 30)[:8]
    (charge,) = relay_report(message).charges
    assert not charge.estimated, "it was read on for the usage"
    assert charge.output_tokens == 30
    _, finished = message.response_metadata["relay"]["events"]
    assert finished["why"] == "length"


@both_sides
@pytest.mark.usefixtures("patient")
def test_without_a_tokenizer_it_is_cut_at_8n_bytes(server: FaultServer, make: Any):
    server.script(Reply(LONG * 30, fault=Fault.IGNORED_LIMIT))
    message = asked(relay(make(server, UNKNOWN)))
    (span,) = (span for span in relay_report(message).spans if span.author == "delegate")
    assert span.text == (LONG * 30)[: 8 * 8]
    assert not relay_report(message).charges[0].estimated


@both_sides
def test_a_users_own_tokenizer_says_where(server: FaultServer, make: Any):
    server.script(Reply(LONG * 30, fault=Fault.IGNORED_LIMIT))
    message = asked(relay(make(server, UNKNOWN, tokenizer=word_ids)))
    (span,) = (span for span in relay_report(message).spans if span.author == "delegate")
    assert span.text == (LONG * 8).rstrip()


def test_a_host_that_goes_on_for_ever_is_read_on_a_little_and_hung_up_on(server: FaultServer):
    server.script(Reply(ENDLESS, fault=Fault.IGNORED_LIMIT))
    message = asked(relay(through_a_client(server)))
    (charge,) = relay_report(message).charges
    assert charge.estimated
    assert server.settled()
    assert server.served[0].hung_up
    assert server.served[0].tokens_sent > DRAIN_PIECES


def test_what_is_left_of_n_is_counted_by_the_hosts_tokenizer(server: FaultServer):
    server.script(Reply(LONG * 4, fault=Fault.TRUNCATED, fault_after=3), " and so on")
    message = asked(
        relay(through_a_client(server), "It is ", "<call>20</call>", ".", max_retries=1)
    )
    kept = (LONG * 3).rstrip()
    assert message.text == f"It is {kept} and so on."
    assert [limit(one.body) for one in server.served] == [20, 20 - len(COUNT(kept))]


def test_a_tokenizer_that_breaks_fails_the_call_and_not_the_answer(server: FaultServer):
    def broken(text: str) -> list[int]:
        raise KeyError(text)

    server.script("blue light scatters most of all colours")
    message = asked(relay(through_a_client(server, tokenizer=broken), budget=None, prices=None))
    assert message.text == "It is  so."
    _, failed = message.response_metadata["relay"]["events"]
    assert "the tokenizer raised KeyError" in failed["error"]


# --- stop strings and cues ----------------------------------------------------------------------

STOPS = [f"STOP{number:02d}" for number in range(28)]


@both_sides
@both_colours
def test_28_stop_strings_work_where_an_api_takes_4(server: FaultServer, make: Any, colour: str):
    model = relay(make(server), "It is ", "<call>20</call>", " so.", stop=STOPS)
    for stop in STOPS if colour == "sync" else STOPS[-2:]:
        server.script(f"blue light {stop} scatters most.")
        message = asked(model, colour)
        assert message.text == "It is blue light "
    assert not any("stop" in one.body for one in server.served)
    _, finished = message.response_metadata["relay"]["events"]
    assert finished["why"] == "cut"


@both_colours
def test_a_stop_string_is_found_across_pieces(server: FaultServer, colour: str):
    server.script("blue light and so it is")  # streamed in words
    model = relay(through_langchain(server), "It is ", "<call>20</call>", stop=["and so it"])
    assert asked(model, colour).text == "It is blue light "


@both_colours
def test_a_stop_string_is_found_across_the_border_of_draft_and_span(
    server: FaultServer, colour: str
):
    server.script("OP and more")
    model = relay(
        through_langchain(server, mode="prefill"),
        *("It is ST", "<call>20</call>", " so."),
        stop=["STOP"],
    )
    message = asked(model, colour)
    assert message.text == "It is "
    # and a beginning that does not come true is shown after all
    server.script("AND and more")
    assert asked(model, colour).text == "It is STAND and more so."


def test_a_stop_string_is_found_across_the_border_of_span_and_local_text(server: FaultServer):
    server.script("blue ST")
    assert asked(
        relay(through_langchain(server), "<call>20</call>", "OP!", stop=["STOP"])
    ).text == ("blue ")


@both_colours
def test_a_cut_at_a_stop_string_does_not_read_on(server: FaultServer, colour: str):
    server.script("blue STOP00 and two more.")
    message = asked(relay(through_a_client(server), stop=STOPS), colour)
    assert relay_report(message).charges[0].estimated, "the usage is a few pieces further"
    server.script("blue STOP00 " + ENDLESS)
    message = asked(
        relay(
            through_a_client(server),
            "It is ",
            "<call>60000</call>",
            stop=STOPS,
            max_span_tokens=60_000,
        )
    )
    assert message.text == "It is blue "
    assert relay_report(message).charges[0].estimated
    assert server.settled()
    assert server.served[-1].hung_up


def test_28_cues_of_a_policy_are_cut_on_this_side(server: FaultServer):
    cues = tuple(f"Cue{number}" for number in range(28))
    server.script(
        "First of all there is a sky and it is blue Cue27 never seen.",
        "Second there is the light. </think>",
    )
    local = (" The sky scatters.", " It does.", "</think>", "So it is blue.")
    message = asked(
        relay(
            through_langchain(server),
            *local,
            policy=SwitchCues(cues=cues, match="word"),
            teach="none",
        )
    )
    assert "Cue27" in message.text
    assert "never seen" not in message.text
    assert all("stop" not in one.body for one in server.served)


# --- reasoning ----------------------------------------------------------------------------------


@both_sides
@both_colours
def test_an_empty_span_of_a_reasoning_model_is_declined_and_charged(
    server: FaultServer, make: Any, colour: str
):
    server.script(Reply("", reasoning_tokens=8, usage=(11, 8)))
    message = asked(relay(make(server)), colour)
    assert message.text == "It is  so."
    _, finished = message.response_metadata["relay"]["events"]
    assert finished["type"] == "relay.call.finished"
    assert finished["declined"] is True
    assert (finished["output_tokens"], finished["reasoning_tokens"]) == (8, 8)
    report = relay_report(message)
    assert (report.calls, report.failed, report.delegated_tokens) == (1, 0, 0)
    (charge,) = report.charges
    assert (charge.input_tokens, charge.reasoning_tokens) == (11, 8)
    assert charge.cost_nanousd == report.cost_nanousd == 11 * 1_000 + 8 * 2_000
    assert not charge.estimated


# --- the input side -----------------------------------------------------------------------------


@both_sides
def test_a_prompt_is_reserved_at_what_its_tokens_cost(server: FaultServer, make: Any):
    server.script("blue.")
    question = "Why is the sky blue? " * 100
    tokens = len(COUNT(question))
    assert tokens * 3 < len(question)
    affordable = Budget(usd=str((tokens + 400) * 1e-6))
    message = relay(make(server), budget=affordable).invoke(question)
    assert relay_report(message).calls == 1
    message = relay(make(server, UNKNOWN), budget=affordable).invoke(question)
    assert relay_report(message).denied == 1, "a token per byte is more than there is"


def test_a_fallback_is_cut_by_its_own_tokenizer(server: FaultServer):
    server.script(Reply(fault=Fault.UNAVAILABLE), Reply(LONG * 30, fault=Fault.IGNORED_LIMIT))
    hosted = FallbackDelegate(through_a_client(server, UNKNOWN), through_langchain(server))
    message = asked(relay(hosted))
    (span,) = (span for span in relay_report(message).spans if span.author == "delegate")
    assert COUNT(span.text) == COUNT(LONG * 30)[:8]
