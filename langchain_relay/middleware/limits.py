"""Budgets under the scopes of an agent, and what they come to with what was granted."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal

from langchain_relay.budget import Budget
from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.errors import UsageMistake
from langchain_relay.middleware.state import RUN, UNITS, Spending


def of_an_agent(budget: Budget, scope: str, *, in_ledger: bool) -> Budget:
    """The budget under the agent's own scope.

    Raises:
        UsageMistake: it is none, or limits what only an answer or only a ledger can count.
    """
    name = "run" if scope == RUN else "thread"
    if not isinstance(budget, Budget):
        raise UsageMistake(f"{name}={budget!r}: pass one Budget, such as Budget(usd='0.50')")
    if budget.share is not None:
        raise UsageMistake(
            f"{name}=Budget(share=...): a share is a matter of one answer; give it to the model"
        )
    if budget.scope not in {"run", name}:
        raise UsageMistake(
            f"{name}=Budget(scope={budget.scope!r}): leave the scope out here, and give budgets of "
            f"other scopes to the model"
        )
    if budget.window is not None and not in_ledger:
        raise UsageMistake(f"{name}=Budget(window={budget.window!r}) needs a ledger=")
    return replace(budget, scope=scope)


def limits_of(budget: Budget, counted: Spending) -> Spending:
    """The limits there are, with what was granted on top."""
    times = 1 + counted.get(grant_of(budget), 0)
    limits = (budget.limit_nanousd, budget.tokens, budget.calls)
    return {
        unit: limit * times for unit, limit in zip(UNITS, limits, strict=True) if limit is not None
    }


def grant_of(budget: Budget) -> str:
    """How often more was granted: in this window, if there is one, and not in the next."""
    window = budget.window_of(time.time())
    return "granted" if window is None else f"granted in the {window}"


def limited_to(budget: Budget, limits: Spending) -> Budget:
    """The budget with other limits."""
    nanousd = limits.get("cost_nanousd")
    return replace(
        budget,
        usd=None if nanousd is None else Decimal(nanousd) / NANOUSD_PER_USD,
        tokens=limits.get("tokens"),
        calls=limits.get("calls"),
    )
