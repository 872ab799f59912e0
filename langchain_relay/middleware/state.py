"""What the middleware counts, in the form in which it keeps it in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from langchain.agents.middleware import AgentState
from langchain.agents.middleware.types import PrivateStateAttr

from langchain_relay.budget import Allowance
from langchain_relay.engine.ledger import Amount

RUN, THREAD = "agent_run", "thread"
"""Scopes of the accounts."""

CHANNELS: Mapping[str, str] = {RUN: "relay_run", THREAD: "relay_thread"}

UNITS = ("cost_nanousd", "tokens", "calls")

Choice = Literal["continue", "local", "end"]

Spending = dict[str, int]
"""What was spent, by unit, and how often more was granted (see `limits.grant_of`)."""


class RelayBudgetState(AgentState[Any]):
    """What the middleware keeps in the checkpoint; none of it is input or output."""

    relay_run: NotRequired[Annotated[Spending, PrivateStateAttr]]
    relay_thread: NotRequired[Annotated[Spending, PrivateStateAttr]]
    relay_run_id: NotRequired[Annotated[str, PrivateStateAttr]]
    relay_refused: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]
    relay_choice: NotRequired[Annotated[Choice | None, PrivateStateAttr]]


def counted_in(state: Mapping[str, Any], scope: str) -> Spending:
    """What the state counts in this scope; nothing yet: empty."""
    counted: Spending | None = state.get(CHANNELS[scope])
    return counted or {}


def kept(spent: Mapping[Allowance, Amount]) -> dict[str, Spending]:
    """What a ledger says, in the form of the state's channels."""
    return {
        CHANNELS[allowance.budget.scope]: {
            "cost_nanousd": amount.cost_nanousd,
            "tokens": amount.tokens,
            "calls": amount.calls,
        }
        for allowance, amount in spent.items()
    }


def spent_by(charges: list[dict[str, Any]]) -> Spending:
    """What the attempts of a model call cost; a released one is no call."""
    booked = [charge for charge in charges if not charge["released"]]
    return {
        "cost_nanousd": sum(charge["cost_nanousd"] or 0 for charge in booked),
        "tokens": sum(charge["output_tokens"] or 0 for charge in booked),
        "calls": len(booked),
    }


def plus(one: Spending, other: Spending) -> Spending:
    """Both together, unit by unit."""
    return {unit: one.get(unit, 0) + other.get(unit, 0) for unit in {**one, **other}}


def most(one: Spending, other: Spending) -> Spending:
    """The larger of both, unit by unit."""
    return {unit: max(one.get(unit, 0), other.get(unit, 0)) for unit in {**one, **other}}
