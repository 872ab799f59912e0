"""Costs of LangChain's own chat models, over HTTP, against the host's count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

from langchain_relay import (
    CostCallbackHandler,
    RelayChatModel,
    get_cost_callback,
    get_relay_callback,
)
from langchain_relay.testing import ScriptedLocal
from tests.faults import Fault, FaultServer, Reply

REPLY = Reply("blue light scatters most.", usage=(1_000, 20))


@pytest.fixture
def host() -> Iterator[FaultServer]:
    with FaultServer(REPLY) as server:
        yield server


def openai(host: FaultServer) -> BaseChatModel:
    return ChatOpenAI(
        model="gpt-5-mini", base_url=f"{host.url}/v1", api_key="x", stream_usage=True, max_retries=0
    )


def openai_responses(host: FaultServer) -> BaseChatModel:
    return ChatOpenAI(
        model="gpt-5-mini",
        base_url=f"{host.url}/v1",
        api_key="x",
        use_responses_api=True,
        max_retries=0,
    )


def anthropic(host: FaultServer) -> BaseChatModel:
    return ChatAnthropic(model="claude-haiku-4-5", base_url=host.url, api_key="x", max_retries=0)


def gemini(host: FaultServer) -> BaseChatModel:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url=host.url, api_key="x")


def ollama(host: FaultServer) -> BaseChatModel:
    return ChatOllama(model="llama3.2", base_url=host.url)


Maker = Callable[[FaultServer], BaseChatModel]
PRICES: dict[Maker, tuple[str, int, int]] = {  # nano-dollars per token
    openai: ("gpt-5-mini", 250, 2_000),
    openai_responses: ("gpt-5-mini", 250, 2_000),
    anthropic: ("claude-haiku-4-5", 1_000, 5_000),
    gemini: ("gemini-2.5-flash", 300, 2_500),
}


async def _stream(model: Any) -> None:
    list(model.stream("Why is the sky blue?"))


async def _astream(model: Any) -> None:
    [chunk async for chunk in model.astream("Why is the sky blue?")]


async def _events(model: Any) -> None:
    [event async for event in model.astream_events("Why is the sky blue?", version="v2")]


async def _invoke(model: Any) -> None:
    model.invoke("Why is the sky blue?")


async def _batch(model: Any) -> None:
    model.batch(["Why is the sky blue?"] * 4)


async def _abatch(model: Any) -> None:
    await model.abatch(["Why is the sky blue?"] * 4)


async def _chain(model: Any) -> None:
    chain = ChatPromptTemplate.from_template("Why {what}?") | model | StrOutputParser()
    await chain.ainvoke({"what": "blue"})


async def _agent(model: Any) -> None:
    agent: Any = create_agent(model, tools=[lookup])
    agent.invoke({"messages": [("user", "Why is the sky blue?")]})


@tool
def lookup(q: str) -> str:
    """Look something up."""
    return q


PATHS = {
    "invoke": (_invoke, 1),
    "ainvoke": (lambda model: model.ainvoke("Why is the sky blue?"), 1),
    "stream": (_stream, 1),
    "astream": (_astream, 1),
    "astream_events": (_events, 1),
    "batch": (_batch, 4),
    "abatch": (_abatch, 4),
    "chain": (_chain, 1),
    "agent": (_agent, 1),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", PRICES, ids=lambda make: make.__name__)
async def test_each_token_is_counted_and_priced_once(host: FaultServer, make: Maker, path: str):
    drive, calls = PATHS[path]
    name, read, wrote = PRICES[make]
    with get_cost_callback() as costs, get_usage_metadata_callback() as usage:
        await drive(make(host))
    counted, langchains = costs.models[name], usage.usage_metadata[name]
    assert (counted.input_tokens, counted.output_tokens) == host.usage_total
    assert (langchains["input_tokens"], langchains["output_tokens"]) == host.usage_total
    assert (counted.calls, counted.unpriced, counted.failed) == (calls, 0, 0)
    assert costs.cost_nanousd == calls * (1_000 * read + 20 * wrote)


@pytest.mark.parametrize("path", PATHS)
async def test_a_local_servers_model_has_no_price_and_is_not_free(host: FaultServer, path: str):
    drive, calls = PATHS[path]
    with get_cost_callback() as costs:
        await drive(ollama(host))
    assert (costs.unpriced, costs.unpriced_models) == (calls, ["llama3.2"])
    assert (costs.total.input_tokens, costs.total.output_tokens) == host.usage_total
    with get_cost_callback({"llama3.2": (0, 0)}) as free:
        await drive(ollama(host))
    assert (free.cost_nanousd, free.unpriced) == (0, 0)


@pytest.mark.parametrize("make", PRICES, ids=lambda make: make.__name__)
def test_an_agents_calls_and_tools_are_added_up(host: FaultServer, make: Maker):
    host.script(Reply(fault=Fault.TOOL_CALLS, usage=(500, 30)), REPLY)
    with get_cost_callback() as costs:
        agent: Any = create_agent(make(host), tools=[lookup])
        agent.invoke({"messages": [("user", "Why is the sky blue?")]})
    name, read, wrote = PRICES[make]
    assert (costs.models[name].calls, len(host.served)) == (2, 2)
    assert costs.cost_nanousd == 1_500 * read + 50 * wrote


def test_without_usage_the_cost_is_unknown(host: FaultServer):
    host.script(Reply(fault=Fault.NO_USAGE))
    with get_cost_callback() as costs:
        openai(host).invoke("?")
    assert (costs.unpriced, costs.cost_nanousd) == (1, 0)


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.SERVER_ERROR, Fault.BAD_GATEWAY])
def test_a_call_that_fails_is_counted_and_costs_nothing_known(host: FaultServer, fault: Fault):
    host.script(Reply(fault=fault))
    with get_cost_callback() as costs, pytest.raises(Exception, match="told to fail"):
        openai(host).invoke("?")
    assert (costs.total.calls, costs.total.failed, costs.unpriced) == (1, 1, 0)


async def test_many_models_at_once_keep_their_counts_apart(host: FaultServer):
    costs = CostCallbackHandler()
    config: Any = {"callbacks": [costs]}
    models = [make(host) for make in PRICES] * 5
    await asyncio.gather(*(model.ainvoke("?", config) for model in models))
    assert costs.total.calls == 20
    expected = 5 * sum(1_000 * read + 20 * wrote for _, read, wrote in PRICES.values())
    assert costs.cost_nanousd == expected
    assert costs.models["gpt-5-mini"].calls == 10  # both of OpenAI's protocols


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize("make", PRICES, ids=lambda make: make.__name__)
async def test_all_counts_of_a_relay_agree_with_the_host(host: FaultServer, make: Maker, path: str):
    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>60</call>", "so."), delegate=make(host)
    )
    drive, calls = PATHS[path]
    name, read, wrote = PRICES[make]
    with (
        get_cost_callback() as costs,
        get_relay_callback() as totals,
        get_usage_metadata_callback() as usage,
    ):
        await drive(model)
    assert host.settled()
    counted, langchains = costs.models[name], usage.usage_metadata[name]
    assert (counted.input_tokens, counted.output_tokens) == host.usage_total
    assert (totals.input_tokens, totals.output_tokens) == host.usage_total
    assert (langchains["input_tokens"], langchains["output_tokens"]) == host.usage_total
    assert costs.cost_nanousd == totals.cost_nanousd == calls * (1_000 * read + 20 * wrote)
    assert costs.models["scripted-local"].calls == calls
    assert costs.unpriced == 0
