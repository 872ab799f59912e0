"""A limit that leaves nothing: how it is told, raised and asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from langgraph.types import interrupt

from langchain_relay.engine.errors import amount_text
from langchain_relay.errors import BudgetExceeded, UsageMistake
from langchain_relay.middleware.state import THREAD, Choice


@dataclass(frozen=True, slots=True)
class Over:
    """A limit that leaves nothing, or that refused."""

    scope: str
    unit: str
    needed: int
    left: int
    limit: int
    window: str | None

    def __str__(self) -> str:
        whose = "this thread" if self.scope == THREAD else "this run"
        if self.window is not None:
            whose += f" in the {self.window}"
        limit, left = amount_text(self.limit, self.unit), amount_text(self.left, self.unit)
        return f"of {limit} for {whose} there is left: {left}"

    def error(self) -> BudgetExceeded:
        return BudgetExceeded(
            unit=self.unit,
            needed=self.needed,
            left=self.left,
            limit=self.limit,
            scope=self.scope,
            window=self.window,
        )


def refusal(state: Mapping[str, Any]) -> Over | None:
    """What was refused in the last model call."""
    event = state.get("relay_refused")
    if not event:
        return None
    return Over(**{part.name: event[part.name] for part in fields(Over)})


def asked(over: Over) -> Choice:
    """Interrupt the graph, and what it is resumed with.

    Raises:
        UsageMistake: that is no choice.
    """
    answer = interrupt(
        {
            "type": "relay.budget.ask",
            "scope": over.scope,
            "unit": over.unit,
            "left": over.left,
            "limit": over.limit,
            "window": over.window,
            "question": f"The budget is used up: {over}. Go on with as much again?",
            "choices": list(get_args(Choice)),
        }
    )
    if isinstance(answer, bool):
        return "continue" if answer else "local"
    if answer not in get_args(Choice):
        raise UsageMistake(
            f"the agent was resumed with {answer!r}; it takes {', '.join(get_args(Choice))}"
        )
    choice: Choice = answer
    return choice
