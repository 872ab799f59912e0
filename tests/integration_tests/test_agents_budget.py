"""One agent under three budgets, and how many requests its hosted model's host saw."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.ledger import MemoryLedger
from langchain_relay.middleware import RelayBudgetMiddleware
from langchain_relay.testing import ScriptedLocal
from tests.faults import FaultServer, Reply
from tests.integration_tests.delegates.hosted_sides import (
    ANTHROPIC,
    RESPONSES,
    THROUGH_A_CLIENT,
    THROUGH_LANGCHAIN,
    HostedSide,
)

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SIDES = [THROUGH_LANGCHAIN, RESPONSES, ANTHROPIC, THROUGH_A_CLIENT]
N = 8
# A second hand-over has a longer draft, so that it may cost more than the first.
PIECES = ("It is ", f"<call>{N}</call>", " and ", f"<call>{N}</call>", " so.")
THREAD: Any = {"configurable": {"thread_id": "1"}}
PLACES = ["model", "run", "thread", "run_in_ledger", "thread_in_ledger"]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(Reply("blue light.")) as server:
        yield server


class Setting:
    """An agent whose budget stands in the model or in the middleware."""

    def __init__(self, server: FaultServer, side: HostedSide, place: str, budget: Budget) -> None:
        where, _, in_ledger = place.partition("_")
        ledger = MemoryLedger() if in_ledger else None
        model = RelayChatModel(
            model=ScriptedLocal(*PIECES),
            delegate=side(server),
            prices={side.model: (1, 2)},
            budget=budget if where == "model" else None,
            ledger=ledger,
            max_retries=0,
        )
        limits: dict[str, Any] = {where: budget}
        middleware = [] if where == "model" else [RelayBudgetMiddleware(ledger=ledger, **limits)]
        self.server = server
        self.agent: Any = create_agent(
            model, [], middleware=middleware, checkpointer=InMemorySaver()
        )

    def run(self, *, asynchronous: bool) -> AIMessage:
        given = {"messages": [("user", "Why is the sky blue?")]}
        if asynchronous:
            state = asyncio.run(self.agent.ainvoke(given, THREAD))
        else:
            state = self.agent.invoke(given, THREAD)
        answer: AIMessage = state["messages"][-1]
        assert self.server.settled()
        return answer


def in_usd(nanousd: int) -> Budget:
    return Budget(usd=Decimal(nanousd) / NANOUSD_PER_USD)


def denials(message: AIMessage) -> list[dict[str, Any]]:
    events = message.response_metadata["relay"]["events"]
    return [event for event in events if event["type"] == "relay.call.denied"]


def one_call_nanousd(side: HostedSide) -> int:
    """The most that the agent's first hand-over can cost: what a budget of nothing was short of."""
    with FaultServer() as server:
        message = Setting(server, side, "model", in_usd(0)).run(asynchronous=False)
    needed: int = denials(message)[0]["needed"]
    return needed


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("side", SIDES, ids=str)
def test_a_budget_of_nothing_of_one_call_and_of_a_nanodollar_less(
    side: HostedSide, place: str, asynchronous: bool
) -> None:
    one_call = one_call_nanousd(side)
    assert one_call > N * 2_000
    seen = []
    for budget in (in_usd(0), in_usd(one_call), in_usd(one_call - 1)):
        with FaultServer(Reply("blue light.")) as server:
            answer = Setting(server, side, place, budget).run(asynchronous=asynchronous)
            seen.append(len(server.served))
        assert len(denials(answer)) == 1  # after it the answer asks no more
        helped = "blue light." if seen[-1] else ""
        assert answer.text == f"It is {helped} and  so."
        assert (relay_report(answer).cost_nanousd or 0) <= one_call
    assert seen == [0, 1, 0]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("limits", "requests"),
    [({"calls": 0}, 0), ({"calls": 1}, 1), ({"tokens": 0}, 0), ({"calls": 2}, 2)],
)
def test_so_do_the_other_limits(
    server: FaultServer, limits: dict[str, Any], requests: int, place: str, asynchronous: bool
) -> None:
    Setting(server, THROUGH_LANGCHAIN, place, Budget(**limits)).run(asynchronous=asynchronous)
    assert len(server.served) == requests
