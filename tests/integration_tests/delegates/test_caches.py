"""Prompt caches end to end: over a real socket, against hosts that keep what they say they keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from langchain_relay import Budget, RelayChatModel, RelayReport, relay_report
from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.policies import Always
from langchain_relay.testing import ScriptedLocal
from tests.faults import FaultServer, PromptCaches

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

ASKED = [SystemMessage("Be brief. " * 600), HumanMessage("Why is the sky blue?")]
PARAGRAPH = "Short waves are scattered far more than long ones by the air.\n" * 15
CALLS = 4
LOCAL = (*(PARAGRAPH, "<call>8</call>") * CALLS, "So it is.")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer("eight words that the hosted model may write.", caches=PromptCaches()) as one:
        yield one


def claude(server: FaultServer, model: str = "claude-sonnet-4-5", **options: Any) -> Any:
    chat = ChatAnthropic(model=model, base_url=server.url, api_key="test")
    return ChatModelDelegate(chat, **options)


def chat_openai(server: FaultServer, model: str = "gpt-5-mini", **options: Any) -> Any:
    chat = ChatOpenAI(model=model, base_url=f"{server.url}/v1", api_key="test")
    return ChatModelDelegate(chat, **options)


def openai_client(server: FaultServer, model: str = "gpt-5-mini", **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="test")
    return OpenAIDelegate(client, model=model, **options)


def answered(delegate: Any, **fields: Any) -> RelayReport:
    model = RelayChatModel(model=ScriptedLocal(*LOCAL), delegate=delegate, **fields)
    return relay_report(model.invoke(ASKED))


def cached(report: RelayReport) -> list[int]:
    return [charge.cached_input_tokens or 0 for charge in report.charges]


def written(report: RelayReport) -> list[int]:
    return [charge.cache_write_tokens or 0 for charge in report.charges]


@pytest.mark.parametrize("make", [chat_openai, openai_client])
def test_openai_finds_each_draft_in_the_request_behind_it(
    server: FaultServer, make: Callable[..., Any]
):
    report = answered(make(server))
    inputs = [charge.input_tokens or 0 for charge in report.charges]
    assert cached(report)[0] == 0
    for before, hit in zip(inputs, cached(report)[1:], strict=False):
        assert before - 128 - 130 <= hit <= before  # the task's words stand behind the draft


PRICE = {"input": 3, "output": 15, "cached_input": "0.3", "cache_write": "3.75"}


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-5"])  # prefill, instruct
def test_claude_reads_what_the_call_before_wrote(server: FaultServer, model: str):
    report = answered(
        claude(server, model),
        prices={model: PRICE},
    )
    reads, writes = cached(report), written(report)
    assert reads[0] == 0
    assert writes[0] > 1_200
    for number in range(1, CALLS):
        assert reads[number] == reads[number - 1] + writes[number - 1]
    assert sum(writes[1:]) > 300


def test_without_breakpoints_claude_caches_nothing(server: FaultServer):
    report = answered(claude(server, prompt_cache=False))
    assert sum(cached(report)) == sum(written(report)) == 0


@pytest.mark.parametrize("make", [chat_openai, openai_client])
def test_gpt_5_6_reads_what_was_marked_and_unmarked_pays_for_writes_nobody_reads(
    server: FaultServer, make: Callable[..., Any]
):
    steered = answered(make(server, "gpt-5.6", prompt_cache=True))
    server_of_its_own = FaultServer("eight words.", caches=PromptCaches())
    with server_of_its_own as other:
        left_alone = answered(make(other, "gpt-5.6", prompt_cache=False))
    assert cached(left_alone) == [0] * CALLS
    assert sum(written(left_alone)) == sum(c.input_tokens or 0 for c in left_alone.charges)
    assert sum(cached(steered)) > 3 * 1_200
    assert steered.cost_nanousd is not None
    assert left_alone.cost_nanousd is not None
    assert steered.cost_nanousd < left_alone.cost_nanousd / 2


def test_a_second_turn_reads_the_conversation_of_the_first(server: FaultServer):
    model = RelayChatModel(model=ScriptedLocal(*LOCAL), delegate=claude(server))
    first = model.invoke(ASKED)
    second = relay_report(model.invoke([*ASKED, first, HumanMessage("And at night?")]))
    assert cached(second)[0] > 1_200


def test_a_single_hand_over_writes_nothing_and_a_later_turns_reads(server: FaultServer):
    model = RelayChatModel(model=ScriptedLocal(), delegate=claude(server), policy=Always())
    first = model.invoke(ASKED)
    assert sum(written(relay_report(first))) == 0
    turns = [*ASKED, first, HumanMessage("And?")]
    second = model.invoke(turns)
    third = model.invoke([*turns, second, HumanMessage("And then?")])
    assert written(relay_report(second))[0] > 1_200
    assert cached(relay_report(third))[0] > 1_200


def test_what_was_cached_is_reported_everywhere(server: FaultServer):
    model = RelayChatModel(model=ScriptedLocal(*LOCAL), delegate=claude(server))
    with get_usage_metadata_callback() as counted:
        message = asyncio.run(model.ainvoke(ASKED))
    report = relay_report(message)
    reads, writes = sum(cached(report)), sum(written(report))
    (usage,) = (u for name, u in counted.usage_metadata.items() if "claude" in name)
    assert usage["input_token_details"] == {"cache_read": reads, "cache_creation": writes}
    events = message.response_metadata["relay"]["events"]
    finished = [event for event in events if event["type"] == "relay.call.finished"]
    assert sum(event["cached_input_tokens"] for event in finished) == reads
    assert sum(event["cache_write_tokens"] for event in finished) == writes
    assert f"({reads} from a cache, {writes} written to one)" in str(report)


def test_cached_and_written_tokens_have_their_own_prices(server: FaultServer):
    prices = {
        "claude-sonnet-4-5": {
            "input": 3,
            "output": 15,
            "cached_input": "0.3",
            "cache_write": "3.75",
        }
    }
    report = answered(claude(server), prices=prices, budget=Budget(usd=1))
    for charge in report.charges:
        read, wrote = charge.cached_input_tokens or 0, charge.cache_write_tokens or 0
        plain = (charge.input_tokens or 0) - read - wrote
        cost = plain * 3_000 + read * 300 + wrote * 3_750 + (charge.output_tokens or 0) * 15_000
        assert charge.cost_nanousd == cost
        assert charge.overage_nanousd == 0


# --- the window ---------------------------------------------------------------------------------


def shown(server: FaultServer) -> list[str]:
    return [str(served.body["messages"][-1]["content"]) for served in server.served]


def test_a_window_bounds_what_is_sent_and_moves_seldom(server: FaultServer):
    pieces = ("A sentence of some seven words each. ", "<call>4</call>") * 16
    model = RelayChatModel(
        model=ScriptedLocal(*pieces),
        delegate=chat_openai(server),
        draft_window=64,
        max_calls=16,
    )
    report = relay_report(model.invoke(ASKED))
    assert report.calls == 16
    left_out = ["left out here" in text for text in shown(server)]
    assert left_out[0] is False
    assert left_out[-1] is True
    begins = {text[text.index("<draft>") :][:90] for text in shown(server)}
    assert len(begins) <= 7  # 11 words a call, 32 words a step
    assert max(len(text.split("<draft>")[1].split()) for text in shown(server)) < 64 + 150


# --- the caches themselves ----------------------------------------------------------------------


def usage_of(server: FaultServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with httpx.Client(trust_env=False) as http:
        usage: dict[str, Any] = http.post(f"{server.url}{path}", json=body).json()["usage"]
        return usage


def openai_body(words: int, last: str = "end", model: str = "gpt-5-mini") -> dict[str, Any]:
    text = " ".join(["word"] * words)
    return {"model": model, "messages": [{"role": "user", "content": f"{text} {last}"}]}


@pytest.mark.parametrize(("words", "hit"), [(1_000, 0), (1_024, 1_024), (1_300, 1_280)])
def test_openai_counts_shared_beginnings_in_steps_from_1024_on(
    server: FaultServer, words: int, hit: int
):
    path = "/v1/chat/completions"
    first = usage_of(server, path, openai_body(words, "one"))
    second = usage_of(server, path, openai_body(words, "two"))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"] == {"cached_tokens": hit, "cache_write_tokens": 0}
    assert second["prompt_tokens"] == words + 1


def anthropic_body(*blocks: tuple[int, bool], last: str = "end") -> dict[str, Any]:
    mark = {"cache_control": {"type": "ephemeral"}}
    content = [
        {"type": "text", "text": f"b{number} " + "word " * (words - 1), **(mark if on else {})}
        for number, (words, on) in enumerate(blocks)
    ]
    message = {"role": "user", "content": [*content, {"type": "text", "text": last}]}
    return {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [message]}


def counted(usage: dict[str, Any]) -> tuple[int, int, int]:
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    read, hit, written = (usage[name] for name in names)
    return read, hit, written


def test_anthropic_keeps_marked_beginnings_of_a_least_length_and_looks_back_20_blocks(
    server: FaultServer,
):
    def ask(*blocks: tuple[int, bool]) -> tuple[int, int, int]:
        return counted(usage_of(server, "/v1/messages", anthropic_body(*blocks)))

    assert ask((1_000, True)) == (1_001, 0, 0)  # too short
    assert ask((1_100, False)) == (1_101, 0, 0)  # not marked
    assert ask((1_100, True)) == (1, 0, 1_100)
    assert ask((1_100, True)) == (1, 1_100, 0)
    assert ask((1_100, False), (200, True)) == (1, 1_100, 200)  # found from the later mark
    assert ask((1_100, False), *[(2, False)] * 18, (2, True)) == (1, 1_100, 38)
    other = ask((1_100, False), *[(3, False)] * 19, (3, True))
    assert other == (1, 0, 1_160)  # one block too far back
