"""What handlers and LangSmith are told of a hosted attempt, its charge included."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import (
    BaseCallbackHandler,
    CallbackManager,
    UsageMetadataCallbackHandler,
)
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers import LangChainTracer
from langsmith import Client

from langchain_relay import RelayChatModel
from langchain_relay.callbacks import CostCallbackHandler
from langchain_relay.delegates.asks import Received
from langchain_relay.delegates.tracing import aopen_child, open_child, result
from langchain_relay.engine.values import Attempt, Charge, Delta, Usage
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

NANO = 10**9
FINISHED = Delta(usage=Usage(12, 3, 4, 2, 1), finish="stop", model="gpt-5-mini-2026")
CHARGE = Charge("c", 1, "gpt-5-mini", cost_nanousd=9_000, price_source="user")


def langsmith() -> tuple[LangChainTracer, list[dict[str, Any]]]:
    """LangSmith's tracer, and the metadata of the runs it would send."""
    sent: list[dict[str, Any]] = []

    class Smith(LangChainTracer):  # it makes copies of itself
        def _persist_run_single(self, run: Any) -> None:
            pass

        def _update_run_single(self, run: Any) -> None:  # type: ignore[override]  # static, by chance
            sent.append((run.extra or {}).get("metadata", {}))

    client = Client(api_url="http://localhost:1", api_key="x", info={}, auto_batch_tracing=False)
    return Smith(client=client), sent


class Seen(BaseCallbackHandler):
    def __init__(self) -> None:
        self.usages: list[Any] = []
        self.metadata: dict[str, Any] = {}

    def on_chat_model_start(self, *args: Any, metadata: Any = None, **kwargs: Any) -> None:
        self.metadata = metadata

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        generation: Any = response.generations[0][0]
        self.usages.append(generation.message.usage_metadata)


def told(received: Received, *handlers: BaseCallbackHandler, asynchronous: bool = False) -> None:
    """One child run from its start to its end, under a relay that says what it is."""
    parent = BaseRunManager(
        run_id=uuid4(),
        handlers=list(handlers),
        inheritable_handlers=list(handlers),
        metadata={"ls_provider": "relay"},
        inheritable_metadata={"ls_provider": "relay", "ls_temperature": 0.5},
    )
    attempt = Attempt((HumanMessage("?"),), "It is ", 8)
    delegate = ScriptedDelegate("blue", model="gpt-5-mini")

    async def tell() -> None:
        child = await aopen_child(parent, delegate, attempt)
        await child.on_llm_end(result(received, "gpt-5-mini"))

    if asynchronous:
        asyncio.run(tell())
    else:
        open_child(parent, delegate, attempt).on_llm_end(result(received, "gpt-5-mini"))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_langsmith_is_told_the_cost_and_nobody_else_meets_a_float(asynchronous: bool):
    (smith, sent), seen, usage = langsmith(), Seen(), UsageMetadataCallbackHandler()
    costs = CostCallbackHandler()
    for _ in range(2):
        told(
            Received("blue", FINISHED, charge=CHARGE),
            smith,
            seen,
            usage,
            costs,
            asynchronous=asynchronous,
        )
    assert [one["usage_metadata"]["total_cost"] for one in sent] == [9_000 / NANO] * 2
    assert sent[0]["usage_metadata"]["input_tokens"] == 12
    assert all("total_cost" not in one for one in seen.usages)
    assert usage.usage_metadata["gpt-5-mini-2026"]["total_tokens"] == 30  # both, added up
    assert costs.cost_nanousd == 18_000  # the charge, not the table's price
    assert costs.models["gpt-5-mini-2026"].price_sources == {"user"}


def test_a_worst_case_is_told_where_no_usage_came():
    (smith, sent), costs = langsmith(), CostCallbackHandler()
    charge = Charge("c", 1, "gpt-5-mini", cost_nanousd=5_000, price_source="user", estimated=True)
    told(Received("blue", Delta(), charge=charge), smith, costs)
    assert sent[0]["usage_metadata"] == {"total_cost": 5_000 / NANO}
    assert (costs.cost_nanousd, costs.total.estimated, costs.unpriced) == (5_000, 1, 0)


def test_counts_that_cannot_be_are_told_nobody():
    seen = Seen()
    received = Received(charge=CHARGE)
    received.add(Delta("blue", usage=Usage(-12, 3), finish="stop"))
    told(received, seen)
    assert seen.usages == [None]


def test_an_unknown_cost_is_not_told_as_zero():
    (smith, sent), costs = langsmith(), CostCallbackHandler()
    charge = Charge("c", 1, "gpt-5-mini", input_tokens=12, output_tokens=3)
    told(Received("blue", FINISHED, charge=charge), smith, costs)
    assert "total_cost" not in sent[0]["usage_metadata"]
    assert (costs.unpriced, costs.unpriced_models) == (1, ["gpt-5-mini-2026"])


def test_a_hosted_attempt_does_not_pass_for_the_relays():
    seen = Seen()
    told(Received("blue", FINISHED), seen)
    assert seen.metadata["ls_provider"] == "unknown"
    assert (seen.metadata["ls_temperature"], seen.metadata["ls_max_tokens"]) == (None, 8)


def test_cached_and_reasoning_tokens_are_told():
    seen = Seen()
    told(Received("blue", FINISHED), seen)
    assert seen.usages[0]["input_token_details"] == {"cache_read": 4, "cache_creation": 2}
    assert seen.usages[0]["output_token_details"] == {"reasoning": 1}


@pytest.mark.parametrize("path", ["invoke", "stream", "ainvoke", "astream"])
async def test_langsmiths_costs_add_up_to_the_answers(path: str):
    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", "so."),
        delegate=FailingDelegate(ConnectionError("gone"), then="blue ", usage=(12, 3)),
        prices={"failing": (1, 2), "scripted": (1, 2)},
    )
    smith, sent = langsmith()
    config: Any = {"callbacks": [smith]}
    match path:
        case "invoke":
            await asyncio.to_thread(model.invoke, "?", config)
        case "stream":
            await asyncio.to_thread(lambda: list(model.stream("?", config)))
        case "ainvoke":
            await model.ainvoke("?", config)
        case "astream":
            [chunk async for chunk in model.astream("?", config)]
    usages = [one["usage_metadata"] for one in sent if "usage_metadata" in one]
    assert [usage["total_cost"] for usage in usages if "total_cost" in usage] == [18_000 / NANO]
    assert sum(usage["input_tokens"] == 12 for usage in usages) == 1


class Told(BaseCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_chat_model_start(
        self, *args: Any, tags: Any = (), metadata: Any = None, **kwargs: Any
    ) -> None:
        self.heard.append(("start", "mine" in tags, metadata.get("team"), metadata["ls_provider"]))

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.heard.append(response.generations[0][0].text)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("twice", [False, True])
async def test_handlers_of_the_wrapped_model_hear_of_its_attempts_once(
    asynchronous: bool, managed: bool, twice: bool
):
    """As they would if the model were asked without a relay; and of nothing else."""
    mine = Told()
    hosted = FakeListChatModel(
        responses=["blue"],
        callbacks=CallbackManager([mine]) if managed else [mine],
        tags=["mine"],
        metadata={"team": "a", "ls_provider": "nobody"},
    )
    model = RelayChatModel(model=ScriptedLocal("It is <call>5</call>"), delegate=hosted)
    config: RunnableConfig = {"callbacks": [mine]} if twice else {}
    if asynchronous:
        await model.ainvoke("?", config)
    else:
        model.invoke("?", config)
    of_the_attempt = ("start", True, "a", "fakelistchatmodel")
    assert mine.heard.count(of_the_attempt) == 1
    assert mine.heard.count("blue") == 1
    assert len(mine.heard) == (4 if twice else 2)
