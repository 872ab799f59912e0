"""`RelayBudgetMiddleware`: what an agent's model gets, and what happens where nothing is left."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain.agents.middleware.types import (
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
)
from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage
from langgraph.runtime import Runtime  # noqa: TC002 - LangGraph reads the annotations
from langgraph.types import Command

from langchain_relay.budget import Budget
from langchain_relay.chat_models import RelayChatModel
from langchain_relay.checks import budgets
from langchain_relay.engine.ledger import Ledger
from langchain_relay.errors import LedgerError, UsageMistake
from langchain_relay.ledgers import ledger_from
from langchain_relay.messages import METADATA_KEY
from langchain_relay.middleware.accounts import Accounts, thread_place, warn
from langchain_relay.middleware.events import RelayTransformer
from langchain_relay.middleware.limits import grant_of, limits_of, of_an_agent
from langchain_relay.middleware.over import Over, asked, refusal
from langchain_relay.middleware.relays import bound_to, relay_in
from langchain_relay.middleware.state import (
    CHANNELS,
    RUN,
    THREAD,
    Choice,
    RelayBudgetState,
    Spending,
    counted_in,
    kept,
    most,
    plus,
    spent_by,
)
from langchain_relay.schema import CALL_DENIED

ExitBehavior = Literal["local", "end", "error", "ask"]

_RUN_ID: ContextVar[str | None] = ContextVar("langchain_relay_agent_run", default=None)
"""The agent's run inside its tools, so that an agent in a tool counts for the same run."""


class RelayBudgetMiddleware(AgentMiddleware[RelayBudgetState, Any, Any]):
    """Budgets for the relay models of an agent, per run of the agent and per thread.

    ```python
    agent = create_agent(
        RelayChatModel(model="smollm2-135m", delegate="openai:gpt-5-mini"),
        tools=[],
        middleware=[RelayBudgetMiddleware(thread=Budget(usd="0.50"), exit_behavior="ask")],
        checkpointer=InMemorySaver(),
    )
    ```

    Each model call gets what is left, and never spends more. Without a ledger the totals are part
    of the checkpoint, so that they outlive the process; they are those of this agent alone. An
    agent inside a tool, other threads and other processes are counted where all models and this
    middleware share a ledger: `RelayChatModel(ledger=l)`, `RelayBudgetMiddleware(ledger=l)`. Then
    an agent in a tool counts for the run and the thread that called it.

    With `ask` the graph is interrupted, so it needs a checkpointer. Resume it with
    `Command(resume="continue")` (the budget that was asked about, once more), `"local"` (nothing
    more is delegated in this run) or `"end"`. A budget that refuses while the last answer is being
    written asks after it; if more is granted, that answer is written again.

    Args:
        run: Limits of one run of the agent, from its input to its output.
        thread: Limits of the thread, in all its runs together.
        ledger: Shared with the models; a `thread` with a `window` needs one.
        exit_behavior: When nothing is left: `local` goes on without the hosted model, `end` ends
            the run with a message that says why, `error` raises `BudgetExceeded`, `ask` asks.

    Raises:
        UsageMistake: there is no limit, or one that an agent cannot have.
    """

    state_schema = RelayBudgetState
    transformers = (RelayTransformer,)

    def __init__(
        self,
        *,
        run: Budget | None = None,
        thread: Budget | None = None,
        ledger: Ledger | str | Path | None = None,
        exit_behavior: ExitBehavior = "local",
    ) -> None:
        super().__init__()
        if run is None and thread is None:
            raise UsageMistake("RelayBudgetMiddleware limits nothing: give run= or thread=")
        if exit_behavior not in get_args(ExitBehavior):
            raise UsageMistake(
                f"exit_behavior={exit_behavior!r}: one of {', '.join(get_args(ExitBehavior))}"
            )
        if ledger == "memory":
            raise UsageMistake(
                "ledger='memory' is another ledger for whoever says it; give the model and "
                "RelayBudgetMiddleware one MemoryLedger()"
            )
        self._budgets: dict[str, Budget] = {}
        for scope, budget in ((RUN, run), (THREAD, thread)):
            if budget is not None:
                self._budgets[scope] = of_an_agent(budget, scope, in_ledger=ledger is not None)
        self._given = ledger
        self._ledger = None if ledger is None else ledger_from(ledger)
        self._exit_behavior: ExitBehavior = exit_behavior
        self._accounts = Accounts(self._budgets, in_ledger=ledger is not None)

    # --- a run begins ---------------------------------------------------------------------------

    def before_agent(self, state: RelayBudgetState, runtime: Runtime[Any]) -> dict[str, Any]:  # noqa: ARG002 - LangChain's signature
        """Begin the count of a run.

        Raises:
            UsageMistake: there is a budget for the thread, and no thread that keeps its count.
        """
        if self._ledger is None and THREAD in self._budgets and not thread_place():
            raise UsageMistake(
                "RelayBudgetMiddleware(thread=...) needs 'thread_id', and this call has none: call "
                "with config={'configurable': {'thread_id': ...}}, an agent that has a checkpointer"
            )
        caller = None if self._ledger is None else _RUN_ID.get()  # nobody else can be counted
        return {
            "relay_run": {},
            "relay_run_id": caller or uuid4().hex,
            "relay_refused": None,
            "relay_choice": None,
        }

    async def abefore_agent(self, state: RelayBudgetState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Async twin of `before_agent`."""
        return self.before_agent(state, runtime)

    # --- nothing is left ------------------------------------------------------------------------

    @hook_config(can_jump_to=["end"])
    def before_model(
        self,
        state: RelayBudgetState,
        runtime: Runtime[Any],  # noqa: ARG002 - LangChain's signature
    ) -> dict[str, Any] | None:
        """Leave, or ask, if a limit leaves nothing.

        Raises:
            BudgetExceeded: with `exit_behavior="error"`.
        """
        if self._ledger is None or self._stays(state):
            return self._before(state, state)
        now = time.time()
        allowances = self._accounts.allowances(state)
        try:
            spent = {a: self._ledger.spent(a.account(now), now=now) for a in allowances}
        except LedgerError as error:
            warn(error)
            return None
        return self._before(state, kept(spent))

    @hook_config(can_jump_to=["end"])
    async def abefore_model(
        self,
        state: RelayBudgetState,
        runtime: Runtime[Any],  # noqa: ARG002 - LangChain's signature
    ) -> dict[str, Any] | None:
        """Async twin of `before_model`."""
        if self._ledger is None or self._stays(state):
            return self._before(state, state)
        now = time.time()
        allowances = self._accounts.allowances(state)
        try:
            spent = {a: await self._ledger.aspent(a.account(now), now=now) for a in allowances}
        except LedgerError as error:
            warn(error)
            return None
        return self._before(state, kept(spent))

    def _stays(self, state: RelayBudgetState) -> bool:
        """Whether the run goes on whatever is left, so that nobody has to look."""
        return self._exit_behavior == "local" or state.get("relay_choice") == "local"

    def _before(self, state: RelayBudgetState, spent: Mapping[str, Any]) -> dict[str, Any] | None:
        if self._stays(state):
            return None
        over = next(self._over(state, spent), None) or refusal(state)
        if over is None:
            return None
        if self._exit_behavior == "error":
            raise over.error()
        if self._exit_behavior == "end" or (choice := asked(over)) == "end":
            return {"jump_to": "end", "messages": [AIMessage(f"The budget is used up: {over}.")]}
        return self._chosen(state, choice, over)

    def _over(self, state: RelayBudgetState, spent: Mapping[str, Any]) -> Iterator[Over]:
        """The limits of which nothing is left."""
        for scope, budget in self._budgets.items():
            used = counted_in(spent, scope)
            for unit, limit in limits_of(budget, counted_in(state, scope)).items():
                left = limit - used.get(unit, 0)
                if left <= 0:
                    name = "usd" if unit == "cost_nanousd" else unit
                    yield Over(scope, name, 1, 0, limit, budget.window_of(time.time()))

    def _chosen(self, state: RelayBudgetState, choice: Choice, over: Over) -> dict[str, Any]:
        """`continue` grants what was asked for once more; `local` asks no more in this run."""
        if choice == "local":
            return {"relay_choice": choice, "relay_refused": None}
        if (budget := self._budgets.get(over.scope)) is None:  # it was there when it refused
            return {"relay_refused": None}
        granted = plus(counted_in(state, over.scope), {grant_of(budget): 1})
        return {CHANNELS[over.scope]: granted, "relay_refused": None}

    # --- a model call ---------------------------------------------------------------------------

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Give the model what is left, and note what it spent."""
        if (model := relay_in(request.model)) is None:
            return handler(request)
        limited = self._limited(request, model)
        response = handler(limited)
        booked = self._accounts.spent(limited.state, model.kept_in)
        return self._noted(request, response, booked)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Async twin of `wrap_model_call`."""
        if (model := relay_in(request.model)) is None:
            return await handler(request)
        limited = self._limited(request, model)
        response = await handler(limited)
        booked = await self._accounts.aspent(limited.state, model.kept_in)
        return self._noted(request, response, booked)

    def _limited(self, request: ModelRequest[Any], model: RelayChatModel) -> ModelRequest[Any]:
        if self._given is not None and not _same(model.ledger, self._given):
            raise UsageMistake(
                "RelayBudgetMiddleware(ledger=...) and the agent's model keep different ledgers; "
                "give both the same: RelayChatModel(ledger=ledger, ...)"
            )
        settings = dict(request.model_settings)
        given = settings.get("budget") or bound_to(request.model).get("budget")
        settings["budget"] = (*budgets(given), *self._accounts.allowances(request.state))
        if request.state.get("relay_choice") == "local":
            settings["delegation"] = "never"
        return request.override(model_settings=settings)

    def _noted(
        self,
        request: ModelRequest[Any],
        response: ModelResponse[Any],
        booked: Mapping[str, Spending],
    ) -> ExtendedModelResponse[Any]:
        relayed = [
            message.response_metadata[METADATA_KEY]
            for message in response.result
            if METADATA_KEY in message.response_metadata
        ]
        charges = [charge for relay in relayed for charge in relay.get("charges", [])]
        events = [event for relay in relayed for event in relay.get("events", [])]
        update: dict[str, Any] = {
            channel: plus(
                counted_in(request.state, scope), most(spent_by(charges), counted_in(booked, scope))
            )
            for scope, channel in CHANNELS.items()
        }
        ours = {RUN, THREAD} & set(self._budgets)
        refused = [e for e in events if e["type"] == CALL_DENIED and e.get("scope") in ours]
        update["relay_refused"] = refused[-1] if refused else None
        return ExtendedModelResponse(model_response=response, command=Command(update=update))

    # --- it was refused something ---------------------------------------------------------------

    @hook_config(can_jump_to=["model", "end"])
    def after_model(
        self,
        state: RelayBudgetState,
        runtime: Runtime[Any],  # noqa: ARG002 - LangChain's signature
    ) -> dict[str, Any] | None:
        """Raise, or ask, if a limit refused a hand-over of the answer.

        Raises:
            BudgetExceeded: with `exit_behavior="error"`.
        """
        over = refusal(state)
        if over is None or state.get("relay_choice") == "local":
            return None
        if self._exit_behavior == "error":
            raise over.error()
        last = state["messages"][-1]
        if self._exit_behavior != "ask" or getattr(last, "tool_calls", None):
            return None  # before the next model call
        choice = asked(over)
        if choice == "end":
            return {"jump_to": "end", "relay_refused": None}
        if choice == "local":
            return self._chosen(state, choice, over)
        again = {"jump_to": "model", "messages": [RemoveMessage(id=str(last.id))]}
        return {**self._chosen(state, choice, over), **again}

    @hook_config(can_jump_to=["model", "end"])
    async def aafter_model(
        self, state: RelayBudgetState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """Async twin of `after_model`."""
        return self.after_model(state, runtime)

    # --- agents in tools ------------------------------------------------------------------------

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Let an agent in the tool count for this run."""
        if self._ledger is None:
            return handler(request)
        token = _RUN_ID.set(request.state.get("relay_run_id"))
        try:
            return handler(request)
        finally:
            _RUN_ID.reset(token)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Async twin of `wrap_tool_call`."""
        if self._ledger is None:
            return await handler(request)
        token = _RUN_ID.set(request.state.get("relay_run_id"))
        try:
            return await handler(request)
        finally:
            _RUN_ID.reset(token)


def _same(one: object, other: object) -> bool:
    """Whether two ledgers are one; a path may be given as text."""
    if isinstance(one, str | Path) and isinstance(other, str | Path):
        return str(one) == str(other)
    return one == other
