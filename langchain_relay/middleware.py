"""Budgets of an agent: for each of its runs and for its thread, in its checkpoint or in a ledger.

```
before_agent   a run begins: its own count is 0 again
before_model   nothing left: go on locally, end, raise, or ask
wrap_model_call   the model gets what is left, and what it spent goes into the state
after_model    it was refused something: raise, or ask and let it write again
```
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, get_args
from uuid import uuid4

from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import RunnableConfigurableFields

from langchain_relay.budget import Allowance, Budget
from langchain_relay.chat_models import RelayChatModel
from langchain_relay.checks import budgets
from langchain_relay.engine.errors import NANOUSD_PER_USD, amount_text
from langchain_relay.engine.ledger import Account, Amount, Ledger
from langchain_relay.errors import BudgetExceeded, LedgerError, MissingExtra, UsageMistake
from langchain_relay.ledgers import ledger_from
from langchain_relay.messages import METADATA_KEY
from langchain_relay.schema import CALL_DENIED

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
    from langchain.agents.middleware.types import (
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
        ToolCallRequest,
    )
    from langgraph.config import get_config
    from langgraph.runtime import Runtime  # noqa: TC002 - LangGraph reads the annotations
    from langgraph.stream import ProtocolEvent, StreamChannel, StreamTransformer
    from langgraph.types import Command, interrupt
except ImportError as error:
    raise MissingExtra(
        "langchain_relay.middleware is for LangChain's agents: pip install langchain"
    ) from error

__all__ = ["ExitBehavior", "RelayBudgetMiddleware"]

ExitBehavior = Literal["local", "end", "error", "ask"]
Choice = Literal["continue", "local", "end"]

RUN, THREAD = "agent_run", "thread"
"""Scopes of the accounts."""

logger = logging.getLogger(__name__)

_REMEMBERED = 1_000
"""Accounts of model calls that are kept open: other middleware may make a call again."""

_UNITS = ("cost_nanousd", "tokens", "calls")

_RUN_ID: ContextVar[str | None] = ContextVar("langchain_relay_agent_run", default=None)
"""The agent's run inside its tools, so that an agent in a tool counts for the same run."""

Spending = dict[str, int]
"""What was spent, by unit, and how often more was granted: `granted`."""


class RelayBudgetState(AgentState[Any]):
    """What the middleware keeps in the checkpoint; none of it is input or output."""

    relay_run: NotRequired[Annotated[Spending, PrivateStateAttr]]
    relay_thread: NotRequired[Annotated[Spending, PrivateStateAttr]]
    relay_run_id: NotRequired[Annotated[str, PrivateStateAttr]]
    relay_refused: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]
    relay_choice: NotRequired[Annotated[Choice | None, PrivateStateAttr]]


class RelayTransformer(StreamTransformer):
    """Relay events of `stream_events(version="v3")`: `run.extensions["relay"]`, `custom:relay`."""

    required_stream_modes = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._scope = list(scope)
        self._events: StreamChannel[dict[str, Any]] = StreamChannel("relay")

    def init(self) -> dict[str, Any]:
        """See `StreamTransformer.init`."""
        return {"relay": self._events}

    def process(self, event: ProtocolEvent) -> bool:
        """See `StreamTransformer.process`."""
        params = event["params"]
        data = params.get("data")
        ours = isinstance(data, Mapping) and str(data.get("type", "")).startswith("relay.")
        if event["method"] == "custom" and params.get("namespace") == self._scope and ours:
            self._events.push(dict(data))
        return True


@dataclass(frozen=True, slots=True)
class _Over:
    """A limit that leaves nothing, or that refused."""

    scope: str
    unit: str
    needed: int
    left: int
    limit: int

    def __str__(self) -> str:
        whose = "this thread" if self.scope == THREAD else "this run"
        limit, left = amount_text(self.limit, self.unit), amount_text(self.left, self.unit)
        return f"of {limit} for {whose} there is left: {left}"

    def error(self) -> BudgetExceeded:
        return BudgetExceeded(
            unit=self.unit,
            needed=self.needed,
            left=self.left,
            limit=self.limit,
            scope=self.scope,
        )


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
    `Command(resume="continue")` (the same budget again), `"local"` (nothing more is delegated in
    this run) or `"end"`. A budget that refuses while the last answer is being written asks after
    it; if more is granted, that answer is written again.

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
        self._budgets: dict[str, Budget] = {}
        for scope, budget in ((RUN, run), (THREAD, thread)):
            if budget is not None:
                self._budgets[scope] = _of_an_agent(budget, scope, in_ledger=ledger is not None)
        self._given = ledger
        self._ledger = None if ledger is None else ledger_from(ledger)
        self._exit_behavior: ExitBehavior = exit_behavior
        self._id = uuid4().hex
        self._lock = threading.Lock()
        self._accounts: dict[tuple[int, Account], Ledger] = {}

    # --- a run begins ---------------------------------------------------------------------------

    def before_agent(self, state: RelayBudgetState, runtime: Runtime[Any]) -> dict[str, Any]:  # noqa: ARG002 - LangChain's signature
        """Begin the count of a run."""
        return {
            "relay_run": {},
            "relay_run_id": _RUN_ID.get() or uuid4().hex,
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
        allowances = self._allowances(state)
        try:
            spent = {a: self._ledger.spent(a.account(now), now=now) for a in allowances}
        except LedgerError as error:
            _warn(error)
            return None
        return self._before(state, _kept(spent))

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
        allowances = self._allowances(state)
        try:
            spent = {a: await self._ledger.aspent(a.account(now), now=now) for a in allowances}
        except LedgerError as error:
            _warn(error)
            return None
        return self._before(state, _kept(spent))

    def _stays(self, state: RelayBudgetState) -> bool:
        """Whether the run goes on whatever is left, so that nobody has to look."""
        return self._exit_behavior == "local" or state.get("relay_choice") == "local"

    def _before(self, state: RelayBudgetState, spent: Mapping[str, Any]) -> dict[str, Any] | None:
        if self._stays(state):
            return None
        over = next(self._over(state, spent), None) or _refusal(state)
        if over is None:
            return None
        if self._exit_behavior == "error":
            raise over.error()
        if self._exit_behavior == "end" or (choice := _asked(over)) == "end":
            return {"jump_to": "end", "messages": [AIMessage(f"The budget is used up: {over}.")]}
        return self._chosen(state, choice)

    def _over(self, state: RelayBudgetState, spent: Mapping[str, Any]) -> Iterator[_Over]:
        """The limits of which nothing is left."""
        for scope, budget in self._budgets.items():
            used = _counted(spent, scope)
            for unit, limit in _limits(budget, _counted(state, scope)).items():
                left = limit - used.get(unit, 0)
                if left <= 0:
                    name = "usd" if unit == "cost_nanousd" else unit
                    yield _Over(scope, name, 1, 0, limit)

    def _chosen(self, state: RelayBudgetState, choice: Choice) -> dict[str, Any]:
        """`continue` grants every budget once more; `local` asks no more in this run."""
        if choice == "local":
            return {"relay_choice": choice, "relay_refused": None}
        granted = {
            _CHANNELS[scope]: _plus(_counted(state, scope), {"granted": 1})
            for scope in self._budgets
        }
        return {**granted, "relay_refused": None}

    # --- a model call ---------------------------------------------------------------------------

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Give the model what is left, and note what it spent."""
        if (model := _relay_in(request.model)) is None:
            return handler(request)
        limited = self._limited(request, model)
        return self._noted(request, handler(limited), self._spent_on(limited, model))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Async twin of `wrap_model_call`."""
        if (model := _relay_in(request.model)) is None:
            return await handler(request)
        limited = self._limited(request, model)
        response = await handler(limited)
        return self._noted(request, response, await self._aspent_on(limited, model))

    def _limited(self, request: ModelRequest[Any], model: RelayChatModel) -> ModelRequest[Any]:
        if self._given is not None and model.ledger != self._given:
            raise UsageMistake(
                "RelayBudgetMiddleware(ledger=...) and the agent's model keep different ledgers; "
                "give both the same: RelayChatModel(ledger=ledger, ...)"
            )
        settings = dict(request.model_settings)
        given = settings.get("budget") or _bound_to(request.model).get("budget")
        settings["budget"] = (*budgets(given), *self._allowances(request.state))
        if request.state.get("relay_choice") == "local":
            settings["delegation"] = "never"
        return request.override(model_settings=settings)

    def _allowances(self, state: Mapping[str, Any]) -> tuple[Allowance, ...]:
        """What the next model call is under."""
        return tuple(
            self._allowance(scope, budget, state) for scope, budget in self._budgets.items()
        )

    def _allowance(self, scope: str, budget: Budget, state: Mapping[str, Any]) -> Allowance:
        counted = _counted(state, scope)
        limits = _limits(budget, counted)
        if self._ledger is None:
            before = Amount(*(counted.get(unit, 0) for unit in _UNITS))
            return Allowance(_with(budget, limits), self._key(scope, state), before=before)
        key = state.get("relay_run_id") or uuid4().hex
        if scope == THREAD:
            return _with(budget, limits).allowance(key, get_config())
        return Allowance(_with(budget, limits), key)

    def _key(self, scope: str, state: Mapping[str, Any]) -> str:
        """Names what this model call spends, however often other middleware makes it.

        The state says what was spent before, so what comes after that is a new account.
        """
        run = state.get("relay_run_id") or uuid4().hex
        place = _place() if scope == THREAD else ""
        counted = _counted(state, scope)
        return ":".join([self._id, place or run, *(str(counted.get(unit, 0)) for unit in _UNITS)])

    def _spent_on(self, limited: ModelRequest[Any], model: RelayChatModel) -> dict[str, Spending]:
        """What went onto the accounts of this model call, attempts that nobody noted included."""
        if self._ledger is not None:
            return {}
        now, ledger, allowances = time.time(), model.kept_in, self._allowances(limited.state)
        try:
            spent = {a: ledger.spent(a.account(now), now=now) for a in allowances}
            for account in self._done_with(allowances, ledger, now):
                ledger.close(account)
        except LedgerError as error:
            _warn(error)
            return {}
        return _kept(spent)

    async def _aspent_on(
        self, limited: ModelRequest[Any], model: RelayChatModel
    ) -> dict[str, Spending]:
        """Async twin of `_spent_on`."""
        if self._ledger is not None:
            return {}
        now, ledger, allowances = time.time(), model.kept_in, self._allowances(limited.state)
        try:
            spent = {a: await ledger.aspent(a.account(now), now=now) for a in allowances}
            for account in self._done_with(allowances, ledger, now):
                await ledger.aclose(account)
        except LedgerError as error:
            _warn(error)
            return {}
        return _kept(spent)

    def _done_with(
        self, allowances: tuple[Allowance, ...], ledger: Ledger, now: float
    ) -> list[Account]:
        """Accounts of model calls so long ago that nobody makes them again."""
        with self._lock:
            for allowance in allowances:
                self._accounts[id(ledger), allowance.account(now)] = ledger
            places = list(self._accounts)[:-_REMEMBERED]
            old = [(self._accounts.pop(place), place[1]) for place in places]
        return [account for kept_in, account in old if kept_in is ledger]

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
            channel: _plus(
                _counted(request.state, scope), _most(_spent(charges), _counted(booked, scope))
            )
            for scope, channel in _CHANNELS.items()
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
        over = _refusal(state)
        if over is None or state.get("relay_choice") == "local":
            return None
        if self._exit_behavior == "error":
            raise over.error()
        last = state["messages"][-1]
        if self._exit_behavior != "ask" or getattr(last, "tool_calls", None):
            return None  # before the next model call
        choice = _asked(over)
        if choice == "end":
            return {"jump_to": "end", "relay_refused": None}
        if choice == "local":
            return self._chosen(state, choice)
        again = {"jump_to": "model", "messages": [RemoveMessage(id=str(last.id))]}
        return {**self._chosen(state, choice), **again}

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
        token = _RUN_ID.set(request.state.get("relay_run_id"))
        try:
            return await handler(request)
        finally:
            _RUN_ID.reset(token)


_CHANNELS: Mapping[str, str] = {RUN: "relay_run", THREAD: "relay_thread"}


def _relay_in(model: Any) -> RelayChatModel | None:
    """The relay that `model` is or, bound to settings, to a config or to retries, has in it.

    Raises:
        UsageMistake: there is one among fallbacks, where the others do not know of budgets.
    """
    while isinstance(model, RunnableBindingBase | RunnableConfigurableFields):
        model = model.bound if isinstance(model, RunnableBindingBase) else model.default
    if isinstance(model, RunnableWithFallbacks) and any(map(_relay_in, model.runnables)):
        raise UsageMistake(
            "RelayBudgetMiddleware cannot limit a model .with_fallbacks(); give the agent the "
            "relay and use ModelFallbackMiddleware, or a FallbackDelegate in the relay"
        )
    return model if isinstance(model, RelayChatModel) else None


def _bound_to(model: Any) -> dict[str, Any]:
    """What `.bind()` gave it; the outermost wins."""
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBindingBase):
        bound = {**model.kwargs, **bound}
        model = model.bound
    return bound


def _warn(error: LedgerError) -> None:
    """Nobody knows what is left: the model goes on, and what it may delegate is its ledger's."""
    logger.warning("the agent's budget is not looked at before this model call: %s", error)


def _of_an_agent(budget: Budget, scope: str, *, in_ledger: bool) -> Budget:
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


def _counted(state: Mapping[str, Any], scope: str) -> Spending:
    counted: Spending | None = state.get(_CHANNELS[scope])
    return counted or {}


def _limits(budget: Budget, counted: Spending) -> Spending:
    """The limits there are, with what was granted on top."""
    times = 1 + counted.get("granted", 0)
    limits = (budget.limit_nanousd, budget.tokens, budget.calls)
    return {
        unit: limit * times for unit, limit in zip(_UNITS, limits, strict=True) if limit is not None
    }


def _with(budget: Budget, limits: Spending) -> Budget:
    """The budget with other limits."""
    nanousd = limits.get("cost_nanousd")
    return replace(
        budget,
        usd=None if nanousd is None else Decimal(nanousd) / NANOUSD_PER_USD,
        tokens=limits.get("tokens"),
        calls=limits.get("calls"),
    )


def _kept(spent: Mapping[Allowance, Amount]) -> dict[str, Spending]:
    """What a ledger says, in the form of the state's channels."""
    return {
        _CHANNELS[allowance.budget.scope]: {
            "cost_nanousd": amount.cost_nanousd,
            "tokens": amount.tokens,
            "calls": amount.calls,
        }
        for allowance, amount in spent.items()
    }


def _spent(charges: list[dict[str, Any]]) -> Spending:
    """What the attempts of a model call cost; a released one is no call."""
    booked = [charge for charge in charges if not charge["released"]]
    return {
        "cost_nanousd": sum(charge["cost_nanousd"] or 0 for charge in booked),
        "tokens": sum(charge["output_tokens"] or 0 for charge in booked),
        "calls": len(booked),
    }


def _plus(one: Spending, other: Spending) -> Spending:
    return {unit: one.get(unit, 0) + other.get(unit, 0) for unit in {**one, **other}}


def _most(one: Spending, other: Spending) -> Spending:
    return {unit: max(one.get(unit, 0), other.get(unit, 0)) for unit in {**one, **other}}


def _place() -> str:
    """The thread and, in it, the agent; empty outside a thread."""
    given = get_config().get("configurable") or {}
    agent = str(given.get("checkpoint_ns") or "").rpartition("|")[0]
    thread = given.get("thread_id")
    return "" if thread is None else f"{thread}/{agent}"


def _refusal(state: Mapping[str, Any]) -> _Over | None:
    """What was refused in the last model call."""
    event = state.get("relay_refused")
    if not event:
        return None
    return _Over(*(event[name] for name in ("scope", "unit", "needed", "left", "limit")))


def _asked(over: _Over) -> Choice:
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
