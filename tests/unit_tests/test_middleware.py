"""`RelayBudgetMiddleware` in `create_agent`; the agent's model is a relay between two doubles."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_relay import Budget, BudgetExceeded, RelayChatModel, errors, relay_report
from langchain_relay.engine.ledger import Account, MemoryLedger
from langchain_relay.middleware import RelayBudgetMiddleware
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

THREAD = {"configurable": {"thread_id": "1"}}
COST_NANOUSD, WORST_NANOUSD = 3 * 2_000, 8 * 2_000  # only output costs something here


def usd(nanousd: int) -> Budget:
    return Budget(usd=Decimal(nanousd) / 10**9)


class Again(AgentMiddleware[Any, Any, Any]):
    """Lets the model write `times` answers in one run."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        asked = next(i for i, m in enumerate(reversed(state["messages"])) if m.type == "human")
        return {"jump_to": "model"} if asked < self._times else None

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        return self.after_model(state, runtime)


class Setting:
    """An agent, what its hosted model was sent, and one way to run it."""

    def __init__(self, *, times: int = 1, ledger: Any = None, **limits: Any) -> None:
        self.hosted = ScriptedDelegate("blue ", usage=(12, 3))
        self.model = RelayChatModel(
            model=ScriptedLocal("It is ", "<call>8</call>", "so."),
            delegate=self.hosted,
            prices={"scripted": (0, 2)},
            ledger=ledger,
        )
        self.saver = InMemorySaver()
        self.agent: Any = create_agent(
            self.model,
            [],
            middleware=[Again(times), RelayBudgetMiddleware(ledger=ledger, **limits)],
            checkpointer=self.saver,
        )

    def run(self, given: Any = "Why?", *, asynchronous: bool = False) -> dict[str, Any]:
        state = given if isinstance(given, Command) else {"messages": [("user", given)]}
        if asynchronous:
            return dict(asyncio.run(self.agent.ainvoke(state, THREAD)))
        return dict(self.agent.invoke(state, THREAD))

    @property
    def requests(self) -> int:
        return len(self.hosted.attempts)


def texts(state: dict[str, Any]) -> list[str]:
    return [m.text for m in state["messages"] if m.type == "ai"]


both = pytest.mark.parametrize("asynchronous", [False, True])
kept = pytest.mark.parametrize("in_ledger", [False, True])


def ledger(in_ledger: bool) -> Any:
    return MemoryLedger() if in_ledger else None


@both
@kept
def test_a_run_spends_no_more_than_its_budget(asynchronous: bool, in_ledger: bool) -> None:
    setting = Setting(times=4, run=Budget(calls=2), ledger=ledger(in_ledger))
    state = setting.run(asynchronous=asynchronous)
    assert texts(state) == ["It is blue so."] * 2 + ["It is so."] * 2
    assert setting.requests == 2
    setting.run(asynchronous=asynchronous)  # the next run begins anew
    assert setting.requests == 4


@both
@kept
def test_a_thread_spends_no_more_than_its_budget(asynchronous: bool, in_ledger: bool) -> None:
    limit_nanousd = 2 * COST_NANOUSD + WORST_NANOUSD - 1  # a third would need one more
    setting = Setting(thread=usd(limit_nanousd), ledger=ledger(in_ledger))
    answers = [texts(setting.run(asynchronous=asynchronous))[-1] for _ in range(4)]
    assert answers == ["It is blue so."] * 2 + ["It is so."] * 2
    assert setting.requests == 2


def test_what_a_thread_spent_is_in_its_checkpoint() -> None:
    setting = Setting(thread=Budget(calls=1))
    setting.run()
    later = Setting(thread=Budget(calls=1))  # another process
    later.agent = create_agent(
        later.model,
        [],
        middleware=[RelayBudgetMiddleware(thread=Budget(calls=1))],
        checkpointer=setting.saver,
    )
    assert texts(later.run())[-1] == "It is so."
    assert later.requests == 0
    kept = setting.agent.get_state(THREAD).values
    assert kept["relay_thread"] == {"cost_nanousd": COST_NANOUSD, "tokens": 3, "calls": 1}


def test_what_it_keeps_is_neither_input_nor_output() -> None:
    setting = Setting(thread=Budget(calls=1))
    state = setting.run()
    assert set(state) == {"messages"}


@both
def test_end_says_why(asynchronous: bool) -> None:
    setting = Setting(times=3, run=Budget(calls=1), exit_behavior="end")
    state = setting.run(asynchronous=asynchronous)
    assert texts(state) == [
        "It is blue so.",
        "The budget is used up: of 1 call for this run there is left: 0 calls.",
    ]


@both
@kept
def test_error_raises(asynchronous: bool, in_ledger: bool) -> None:
    setting = Setting(times=3, run=Budget(calls=1), exit_behavior="error", ledger=ledger(in_ledger))
    with pytest.raises(BudgetExceeded) as caught:
        setting.run(asynchronous=asynchronous)
    error = caught.value
    assert (error.unit, error.left, error.limit, error.scope) == ("calls", 0, 1, "agent_run")
    assert setting.requests == 1


def test_error_raises_too_if_less_is_left_than_a_hand_over_needs() -> None:
    setting = Setting(run=usd(WORST_NANOUSD - 1), exit_behavior="error")
    with pytest.raises(BudgetExceeded, match="may need") as caught:
        setting.run()
    assert caught.value.unit == "usd"
    assert setting.requests == 0


@both
@kept
def test_ask_interrupts_before_the_next_model_call(asynchronous: bool, in_ledger: bool) -> None:
    setting = Setting(times=2, run=Budget(calls=1), exit_behavior="ask", ledger=ledger(in_ledger))
    state = setting.run(asynchronous=asynchronous)
    (question,) = state["__interrupt__"]
    assert question.value["unit"] == "calls"
    assert "as much again" in question.value["question"]
    state = setting.run(Command(resume="continue"), asynchronous=asynchronous)
    assert texts(state) == ["It is blue so."] * 2
    assert setting.requests == 2


@both
def test_ask_and_go_on_locally(asynchronous: bool) -> None:
    setting = Setting(times=3, run=Budget(calls=1), exit_behavior="ask")
    setting.run(asynchronous=asynchronous)
    state = setting.run(Command(resume="local"), asynchronous=asynchronous)
    assert "__interrupt__" not in state  # it asks once in a run
    assert texts(state)[0] == "It is blue so."
    assert all("blue" not in text for text in texts(state)[1:])
    assert len(texts(state)) == 3
    assert setting.requests == 1


def test_ask_and_end() -> None:
    setting = Setting(times=3, run=Budget(calls=1), exit_behavior="ask")
    setting.run()
    state = setting.run(Command(resume="end"))
    assert len(texts(state)) == 2
    assert setting.requests == 1


def test_an_answer_that_was_refused_something_is_written_again_if_more_is_granted() -> None:
    setting = Setting(run=usd(WORST_NANOUSD - 1), exit_behavior="ask")
    state = setting.run()
    assert texts(state) == ["It is so."]
    (question,) = state["__interrupt__"]
    assert (question.value["unit"], question.value["left"]) == ("usd", WORST_NANOUSD - 1)
    state = setting.run(Command(resume=True))
    assert "__interrupt__" not in state
    assert texts(state) == ["It is blue so."]
    assert setting.requests == 1


def test_what_is_granted_is_what_was_asked_for() -> None:
    setting = Setting(
        times=2, run=Budget(calls=1), thread=usd(COST_NANOUSD + WORST_NANOUSD), exit_behavior="ask"
    )
    setting.run()
    setting.run(Command(resume="continue"))  # one more call in this run
    assert setting.requests == 2
    (question,) = setting.run("And?")["__interrupt__"]  # the thread has as much as before
    assert (question.value["scope"], question.value["unit"]) == ("thread", "usd")
    assert question.value["limit"] == COST_NANOUSD + WORST_NANOUSD
    assert setting.requests == 2


@both
def test_what_is_granted_ends_with_its_window(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = "Monday"
    monkeypatch.setattr(Budget, "window_of", lambda self, now: day)
    daily = Budget(calls=1, scope="thread", window="day")
    setting = Setting(times=2, thread=daily, ledger=MemoryLedger(), exit_behavior="ask")
    setting.run(asynchronous=asynchronous)
    setting.run(Command(resume="continue"), asynchronous=asynchronous)
    assert setting.requests == 2
    day = "Tuesday"
    (question,) = setting.run(asynchronous=asynchronous)["__interrupt__"]
    assert setting.requests == 3
    assert question.value["window"] == "Tuesday"


@pytest.mark.parametrize("limit", [{"calls": 1}, {"usd": Decimal(WORST_NANOUSD) / 10**9}])
def test_error_names_the_window(limit: dict[str, Any]) -> None:
    daily = Budget(scope="thread", window="day", **limit)
    setting = Setting(times=2, thread=daily, ledger=MemoryLedger(), exit_behavior="error")
    with pytest.raises(BudgetExceeded, match="in the day") as caught:
        setting.run()
    assert str(caught.value.window).startswith("day ")


def test_a_resume_that_is_no_choice_is_refused() -> None:
    setting = Setting(times=2, run=Budget(calls=1), exit_behavior="ask")
    setting.run()
    with pytest.raises(errors.UsageMistake, match=r"'perhaps'.*continue, local, end"):
        setting.run(Command(resume="perhaps"))


@pytest.mark.parametrize(("limit", "requests"), [(0, 0), (1, 1)])
def test_the_same_agent_under_a_budget_of_nothing_and_of_one_call(
    limit: int, requests: int
) -> None:
    setting = Setting(times=3, run=Budget(calls=limit))
    setting.run()
    assert setting.requests == requests


class Raising(BaseCallbackHandler):
    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        raise RuntimeError("a handler that fails")


class RaisingAsync(AsyncCallbackHandler):
    async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        raise RuntimeError("an async handler that fails")


@both
@kept
@pytest.mark.parametrize("handlers", [[], [Raising()], [RaisingAsync()]])
def test_an_agents_budget_depends_on_no_callback(
    handlers: list[Any], asynchronous: bool, in_ledger: bool
) -> None:
    setting = Setting(times=4, run=Budget(calls=2), ledger=ledger(in_ledger))
    setting.agent = setting.agent.with_config({"callbacks": handlers})
    state = setting.run(asynchronous=asynchronous)
    assert texts(state) == ["It is blue so."] * 2 + ["It is so."] * 2
    assert setting.requests == 2


def test_other_models_of_the_agent_are_left_alone() -> None:
    agent: Any = create_agent(
        GenericFakeChatModel(messages=iter([AIMessage("Hi")])),
        [],
        middleware=[RelayBudgetMiddleware(run=Budget(calls=0))],
    )
    assert texts(agent.invoke({"messages": [("user", "Why?")]})) == ["Hi"]


# --- agents in tools ----------------------------------------------------------------------------


class Caller(GenericFakeChatModel):
    """Calls tools, which a relay cannot yet."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def calls(*names: str) -> AIMessage:
    return AIMessage(
        "", tool_calls=[{"name": name, "args": {}, "id": f"{i}"} for i, name in enumerate(names)]
    )


@both
def test_agents_in_parallel_tools_count_for_the_run_that_called_them(asynchronous: bool) -> None:
    shared = MemoryLedger()
    inner = Setting(run=Budget(calls=2), thread=Budget(calls=100), ledger=shared)

    @tool
    def ask() -> str:
        """Ask the inner agent."""
        agent: Any = create_agent(
            inner.model,
            [],
            middleware=[RelayBudgetMiddleware(run=Budget(calls=2), ledger=shared)],
        )
        return texts(agent.invoke({"messages": [HumanMessage("Why?")]}))[-1]

    outer: Any = create_agent(
        Caller(messages=iter([calls("ask", "ask", "ask", "ask"), AIMessage("Done")])),
        [ask],
        middleware=[RelayBudgetMiddleware(run=Budget(calls=2), ledger=shared)],
    )
    state = {"messages": [("user", "Go")]}
    out = asyncio.run(outer.ainvoke(state)) if asynchronous else outer.invoke(state)
    answers = sorted(m.text for m in out["messages"] if m.type == "tool")
    assert answers == ["It is blue so."] * 2 + ["It is so."] * 2
    assert inner.requests == 2


def test_without_a_ledger_each_run_of_an_agent_in_a_tool_has_its_own_count() -> None:
    inner = Setting(run=Budget(calls=1))
    alone = RelayBudgetMiddleware(run=Budget(calls=1))

    @tool
    def ask() -> str:
        """Ask the inner agent."""
        agent: Any = create_agent(inner.model, [], middleware=[alone])
        return texts(agent.invoke({"messages": [HumanMessage("Why?")]}))[-1]

    outer: Any = create_agent(
        Caller(messages=iter([calls("ask"), calls("ask"), AIMessage("Done")])),
        [ask],
        middleware=[alone],
    )
    out = outer.invoke({"messages": [("user", "Go")]})
    assert [m.text for m in out["messages"] if m.type == "tool"] == ["It is blue so."] * 2


def test_a_thread_that_nobody_names_has_no_budget() -> None:
    setting = Setting(thread=Budget(calls=1))
    agent: Any = create_agent(
        setting.model, [], middleware=[RelayBudgetMiddleware(thread=Budget(calls=1))]
    )
    with pytest.raises(errors.UsageMistake, match="needs 'thread_id'"):
        agent.invoke({"messages": [("user", "Why?")]})
    assert setting.requests == 0


def test_a_shared_ledger_counts_threads_of_all_agents() -> None:
    shared = MemoryLedger()
    one = Setting(thread=Budget(calls=1), ledger=shared)
    other = Setting(thread=Budget(calls=1), ledger=shared)
    one.run()
    assert texts(other.run()) == ["It is so."]
    assert shared.spent(Account("thread", "1"), now=0.0).calls == 1


def test_a_path_and_its_text_are_one_ledger(tmp_path: Path) -> None:
    setting = Setting(run=Budget(calls=1), ledger=tmp_path / "spent.db")
    middleware = RelayBudgetMiddleware(run=Budget(calls=1), ledger=str(tmp_path / "spent.db"))
    agent: Any = create_agent(setting.model, [], middleware=[Again(2), middleware])
    state = agent.invoke({"messages": [("user", "Why?")]})
    assert texts(state) == ["It is blue so.", "It is so."]


def test_different_ledgers_are_refused() -> None:
    agent: Any = create_agent(
        Setting(run=Budget(calls=1)).model,
        [],
        middleware=[RelayBudgetMiddleware(run=Budget(calls=1), ledger=MemoryLedger())],
    )
    with pytest.raises(errors.UsageMistake, match="different ledgers"):
        agent.invoke({"messages": [("user", "Why?")]})


class Away(MemoryLedger):
    def reserve(self, *args: Any, **facts: Any) -> Any:
        raise errors.LedgerError("the store is away")

    def spent(self, *args: Any, **facts: Any) -> Any:
        raise errors.LedgerError("the store is away")


@both
@pytest.mark.parametrize("exit_behavior", ["local", "end", "error", "ask"])
def test_a_ledger_that_is_away_ends_no_run(asynchronous: bool, exit_behavior: Any) -> None:
    away = Away()
    setting = Setting(run=Budget(calls=9), ledger=away, exit_behavior=exit_behavior)
    assert texts(setting.run(asynchronous=asynchronous)) == ["It is so."]
    assert setting.requests == 0


# --- what a run shows ---------------------------------------------------------------------------


def test_events_come_on_a_channel_of_their_own() -> None:
    setting = Setting(run=Budget(calls=1))
    run = setting.agent.stream_events({"messages": [("user", "Why?")]}, THREAD, version="v3")
    kinds = [event["type"] for event in run.extensions["relay"]]
    assert kinds[:2] == ["relay.call.started", "relay.call.finished"]


async def test_events_come_on_a_channel_of_their_own_async() -> None:
    setting = Setting(run=Budget(calls=1))
    run = await setting.agent.astream_events({"messages": [("user", "Why?")]}, THREAD, version="v3")
    kinds = [event["type"] async for event in run.extensions["relay"]]
    assert kinds[:2] == ["relay.call.started", "relay.call.finished"]


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({}, "limits nothing"),
        ({"run": Budget(calls=1), "exit_behavior": "stop"}, "local, end, error, ask"),
        ({"run": Budget(share=0.5)}, "share"),
        ({"run": [Budget(calls=1)]}, "run=.*pass one Budget"),
        ({"thread": 0}, "thread=0: pass one Budget"),
        ({"run": Budget(calls=1), "ledger": "memory"}, r"one MemoryLedger\(\)"),
        ({"thread": Budget(calls=1, scope="user")}, "scope='user'"),
        ({"thread": Budget(calls=1, scope="thread", window="day")}, "needs a ledger"),
    ],
)
def test_a_mistake_is_named(mistake: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.UsageMistake, match=said):
        RelayBudgetMiddleware(**mistake)


def test_the_models_own_budget_holds_too() -> None:
    setting = Setting(run=Budget(calls=5))
    model = setting.model.model_copy(update={"budget": Budget(calls=0)})
    agent: Any = create_agent(model, [], middleware=[RelayBudgetMiddleware(run=Budget(calls=5))])
    answer = agent.invoke({"messages": [("user", "Why?")]})["messages"][-1]
    assert answer.text == "It is so."
    assert relay_report(answer).denied == 1


# --- what no answer tells -----------------------------------------------------------------------


def agent_of(delegate: Any, *middleware: AgentMiddleware[Any, Any, Any], **fields: Any) -> Any:
    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", "so."),
        delegate=delegate,
        prices={"scripted": (0, 2)},
        **fields,
    )
    return create_agent(model, [], middleware=list(middleware), checkpointer=InMemorySaver())


class MadeAgain(AgentMiddleware[Any, Any, Any]):
    """Makes each model call three times, whatever becomes of it."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        for _ in range(2):
            with contextlib.suppress(errors.DelegateError):
                handler(request)
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        for _ in range(2):
            with contextlib.suppress(errors.DelegateError):
                await handler(request)
        return await handler(request)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("scope", ["run", "thread"])
@pytest.mark.parametrize("outside", [False, True])
def test_a_model_call_that_is_made_again_has_what_is_left(
    scope: str, outside: bool, asynchronous: bool
) -> None:
    hosted = ScriptedDelegate("blue ", usage=(12, 3))
    limits: dict[str, Any] = {scope: Budget(calls=2)}
    order = [RelayBudgetMiddleware(**limits), MadeAgain()]
    agent = agent_of(hosted, *(reversed(order) if outside else order))
    if asynchronous:
        asyncio.run(agent.ainvoke({"messages": [("user", "Why?")]}, THREAD))
    else:
        agent.invoke({"messages": [("user", "Why?")]}, THREAD)
    assert len(hosted.attempts) == 2
    if scope == "thread":
        agent.invoke({"messages": [("user", "Why?")]}, THREAD)
        assert len(hosted.attempts) == 2  # the lost answers are in the checkpoint


@pytest.mark.parametrize("outside", [False, True])
def test_a_model_call_that_raised_has_spent(outside: bool) -> None:
    broken = errors.DelegateError("cut", retryable=False, answered=True)
    hosted = FailingDelegate(broken, times=9, after="b ", model="scripted")
    order = [RelayBudgetMiddleware(run=Budget(calls=2)), MadeAgain()]
    agent = agent_of(hosted, *(reversed(order) if outside else order), on_delegate_error="raise")
    agent.invoke({"messages": [("user", "Why?")]}, THREAD)
    assert len(hosted.attempts) == 2


def test_tokens_that_nobody_reported_are_counted_at_their_worst() -> None:
    hosted = ScriptedDelegate("blue ")
    agent = agent_of(hosted, RelayBudgetMiddleware(thread=Budget(tokens=8)))
    for _ in range(2):
        agent.invoke({"messages": [("user", "Why?")]}, THREAD)
    assert len(hosted.attempts) == 1


def test_a_warning_comes_once_in_a_run_and_names_its_whole_limit() -> None:
    setting = Setting(times=6, run=Budget(calls=5, warn_at=0.5))
    events = [
        event
        for message in setting.run()["messages"]
        if message.type == "ai"
        for event in message.response_metadata["relay"]["events"]
    ]
    warnings = [e for e in events if e["type"] == "relay.budget.warning"]
    assert [(e["spent"], e["limit"], e["scope"]) for e in warnings] == [(3, 5, "agent_run")]
    denied = [e for e in events if e["type"] == "relay.call.denied"]
    assert [(e["left"], e["limit"]) for e in denied] == [(0, 5)]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda model: model.bind(temperature=0),
        lambda model: model.with_config(tags=["a"]).bind(temperature=0),
        lambda model: model.with_retry(),
        lambda model: model.configurable_fields(temperature=ConfigurableField(id="heat")),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_model_that_is_bound_to_something_is_limited(wrapped: Any, asynchronous: bool) -> None:
    setting = Setting(run=Budget(calls=9))  # for its parts
    budget = RelayBudgetMiddleware(thread=Budget(calls=1))
    agent: Any = create_agent(
        wrapped(setting.model), [], middleware=[budget], checkpointer=setting.saver
    )
    setting.agent = agent
    for _ in range(2):
        setting.run(asynchronous=asynchronous)
    assert setting.requests == 1


def test_a_budget_that_is_bound_to_the_model_stays() -> None:
    setting = Setting(run=Budget(calls=9))  # for its parts
    model: Any = setting.model.bind(budget=Budget(calls=0))
    agent: Any = create_agent(model, [], middleware=[RelayBudgetMiddleware(run=Budget(calls=1))])
    agent.invoke({"messages": [("user", "Why?")]})
    assert setting.requests == 0


def test_a_relay_among_fallbacks_is_refused() -> None:
    setting = Setting(run=Budget(calls=9))  # for its parts
    model: Any = setting.model.with_fallbacks([setting.model])
    agent: Any = create_agent(model, [], middleware=[RelayBudgetMiddleware(run=Budget(calls=1))])
    with pytest.raises(errors.UsageMistake, match="with_fallbacks"):
        agent.invoke({"messages": [("user", "Why?")]})
    assert setting.requests == 0


@pytest.mark.parametrize("wrong", [3, "0.50", [Budget(calls=1)]])
def test_a_limit_that_is_no_budget_is_refused(wrong: Any):
    with pytest.raises(errors.UsageMistake, match="run="):
        RelayBudgetMiddleware(run=wrong)


def test_without_langchain_it_says_what_to_install():
    code = "import sys; sys.modules['langchain'] = None; import langchain_relay.middleware"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra" in done.stderr
    assert "pip install langchain" in done.stderr
