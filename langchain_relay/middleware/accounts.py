"""On whose accounts a model call of an agent is counted, and what was spent on them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from langgraph.config import get_config

from langchain_relay.budget import Allowance, Budget
from langchain_relay.engine.ledger import Account, Amount, Ledger
from langchain_relay.errors import LedgerError
from langchain_relay.middleware.limits import limited_to, limits_of
from langchain_relay.middleware.state import THREAD, UNITS, Spending, counted_in, kept

logger = logging.getLogger(__name__)

_REMEMBERED = 1_000
"""Accounts of model calls that are kept open: other middleware may make a call again."""


class Accounts:
    """The accounts of the model calls of one middleware.

    In a ledger they are those of the run and of the thread, and the ledger knows what was spent.
    Without one each model call has accounts of its own in the ledger of its model, under what the
    state leaves of the limits, and they are closed when nobody makes that call again.

    Args:
        budgets: By scope.
        in_ledger: The middleware has a ledger.
    """

    def __init__(self, budgets: Mapping[str, Budget], *, in_ledger: bool) -> None:
        self._budgets = budgets
        self._in_ledger = in_ledger
        self._id = uuid4().hex
        self._lock = threading.Lock()
        self._open: dict[tuple[int, Account], Ledger] = {}

    def allowances(self, state: Mapping[str, Any]) -> tuple[Allowance, ...]:
        """What the next model call is under."""
        return tuple(
            self._allowance(scope, budget, state) for scope, budget in self._budgets.items()
        )

    def _allowance(self, scope: str, budget: Budget, state: Mapping[str, Any]) -> Allowance:
        counted = counted_in(state, scope)
        limits = limits_of(budget, counted)
        if not self._in_ledger:
            before = Amount(*(counted.get(unit, 0) for unit in UNITS))
            return Allowance(limited_to(budget, limits), self._key(scope, state), before=before)
        key = state.get("relay_run_id") or uuid4().hex
        if scope == THREAD:
            return limited_to(budget, limits).allowance(key, get_config())
        return Allowance(limited_to(budget, limits), key)

    def _key(self, scope: str, state: Mapping[str, Any]) -> str:
        """Names what this model call spends, however often other middleware makes it.

        The state says what was spent before, so what comes after that is a new account.
        """
        run = state.get("relay_run_id") or uuid4().hex
        place = thread_place() if scope == THREAD else ""
        counted = counted_in(state, scope)
        return ":".join([self._id, place or run, *(str(counted.get(unit, 0)) for unit in UNITS)])

    def spent(self, state: Mapping[str, Any], ledger: Ledger) -> dict[str, Spending]:
        """What went onto the accounts of this model call, attempts that nobody noted included."""
        if self._in_ledger:
            return {}
        now, allowances = time.time(), self.allowances(state)
        try:
            spent = {a: ledger.spent(a.account(now), now=now) for a in allowances}
            for account in self._done_with(allowances, ledger, now):
                ledger.close(account)
        except LedgerError as error:
            warn(error)
            return {}
        return kept(spent)

    async def aspent(self, state: Mapping[str, Any], ledger: Ledger) -> dict[str, Spending]:
        """Async twin of `spent`."""
        if self._in_ledger:
            return {}
        now, allowances = time.time(), self.allowances(state)
        try:
            spent = {a: await ledger.aspent(a.account(now), now=now) for a in allowances}
            for account in self._done_with(allowances, ledger, now):
                await ledger.aclose(account)
        except LedgerError as error:
            warn(error)
            return {}
        return kept(spent)

    def _done_with(
        self, allowances: tuple[Allowance, ...], ledger: Ledger, now: float
    ) -> list[Account]:
        """Accounts of model calls so long ago that nobody makes them again."""
        with self._lock:
            for allowance in allowances:
                self._open[id(ledger), allowance.account(now)] = ledger
            places = list(self._open)[:-_REMEMBERED]
            old = [(self._open.pop(place), place[1]) for place in places]
        return [account for kept_in, account in old if kept_in is ledger]


def thread_place() -> str:
    """The thread and, in it, the agent; empty outside a thread."""
    given = get_config().get("configurable") or {}
    agent = str(given.get("checkpoint_ns") or "").rpartition("|")[0]
    thread = given.get("thread_id")
    return "" if thread is None else f"{thread}/{agent}"


def warn(error: LedgerError) -> None:
    """Nobody knows what is left: the model goes on, and what it may delegate is its ledger's."""
    logger.warning("the agent's budget is not looked at before this model call: %s", error)
