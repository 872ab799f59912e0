"""The five events: their schema, their handlers, and where they go."""

from __future__ import annotations

import json
from typing import Any, get_type_hints
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run

from langchain_relay import Budget, RelayCallbackHandler, RelayChatModel, get_relay_callback, schema
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>8</call>", "so.")
SCHEMAS: dict[str, Any] = {
    "relay.call.started": schema.CallStartedEvent,
    "relay.call.finished": schema.CallFinishedEvent,
    "relay.call.failed": schema.CallFailedEvent,
    "relay.call.denied": schema.CallDeniedEvent,
    "relay.budget.warning": schema.BudgetWarningEvent,
}


def relay(**fields: Any) -> RelayChatModel:
    settings: dict[str, Any] = {
        "model": ScriptedLocal(*PIECES),
        "delegate": ScriptedDelegate("blue ", usage=(12, 3)),
        **fields,
    }
    return RelayChatModel(**settings)


class Typed(RelayCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def on_relay_call_started(self, event: schema.CallStartedEvent, *, run_id: UUID) -> None:
        self.seen.append(("relay.call.started", event))

    def on_relay_call_finished(self, event: schema.CallFinishedEvent, *, run_id: UUID) -> None:
        self.seen.append(("relay.call.finished", event))

    def on_relay_call_denied(self, event: schema.CallDeniedEvent, *, run_id: UUID) -> None:
        self.seen.append(("relay.call.denied", event))

    def on_relay_call_failed(self, event: schema.CallFailedEvent, *, run_id: UUID) -> None:
        self.seen.append(("relay.call.failed", event))

    def on_relay_budget_warning(self, event: schema.BudgetWarningEvent, *, run_id: UUID) -> None:
        self.seen.append(("relay.budget.warning", event))


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "finished": ({}, ["relay.call.started", "relay.call.finished"]),
    "warned": (
        {"budget": Budget(calls=1)},
        ["relay.call.started", "relay.call.finished", "relay.budget.warning"],
    ),
    "refused": ({"budget": Budget(calls=0)}, ["relay.call.denied"]),
    "malformed": ({"model": ScriptedLocal("a ", "<call>x</call>", "b")}, ["relay.call.denied"]),
    "failed": (
        {"delegate": FailingDelegate(ConnectionError("gone")), "max_retries": 0},
        ["relay.call.started", "relay.call.failed"],
    ),
    "declined": (
        {"delegate": ScriptedDelegate("")},
        ["relay.call.started", "relay.call.finished"],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", ["invoke", "stream", "ainvoke", "astream"])
async def test_each_event_reaches_its_typed_callback_once_and_keeps_its_schema(
    case: str, path: str
) -> None:
    fields, names = CASES[case]
    if case == "failed":
        fields = {**fields, "delegate": FailingDelegate(ConnectionError("gone"))}
    model, handler = relay(**fields), Typed()
    config: Any = {"callbacks": [handler]}
    match path:
        case "invoke":
            model.invoke("?", config)
        case "stream":
            list(model.stream("?", config))
        case "ainvoke":
            await model.ainvoke("?", config)
        case "astream":
            [chunk async for chunk in model.astream("?", config)]
    assert [name for name, _ in handler.seen] == names
    for name, event in handler.seen:
        assert set(event) == set(get_type_hints(SCHEMAS[name]))
        assert event["version"] == schema.SCHEMA_VERSION
        assert json.loads(json.dumps(event)) == event
        assert "index" not in event
    if case == "declined":
        assert handler.seen[1][1]["declined"] is True
    if case == "failed":
        assert handler.seen[1][1]["error_type"] == "DelegateError"


def test_events_also_ride_on_the_message() -> None:
    message = relay().invoke("?")
    kinds = [event["type"] for event in message.response_metadata["relay"]["events"]]
    assert kinds == ["relay.call.started", "relay.call.finished"]


@pytest.mark.parametrize("mode", ["custom", ["custom", "messages"]])
def test_events_reach_langgraphs_custom_stream(mode: Any) -> None:
    agent = create_agent(relay(), [])
    parts = list(agent.stream({"messages": [HumanMessage("?")]}, stream_mode=mode))
    custom = [part for part in parts if mode == "custom"] or [
        part for kind, part in parts if kind == "custom"
    ]
    assert [part["type"] for part in custom] == ["relay.call.started", "relay.call.finished"]


def test_langgraphs_messages_mode_shows_each_token_once() -> None:
    agent = create_agent(relay(), [])
    chunks: Any = agent.stream({"messages": [HumanMessage("?")]}, stream_mode="messages")
    assert "".join(chunk.text for chunk, _ in chunks) == "It is blue so."


class Tree(BaseTracer):
    """Keeps the finished root runs, as LangSmith would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


@pytest.mark.parametrize("path", ["invoke", "stream"])
def test_each_attempt_is_a_child_run_with_its_own_usage(path: str) -> None:
    tree = Tree()
    model = relay(delegate=FailingDelegate(ConnectionError("gone"), then="blue ", usage=(12, 3)))
    config: Any = {"callbacks": [tree]}
    if path == "invoke":
        model.invoke("?", config)
    else:
        list(model.stream("?", config))
    (root,) = tree.roots
    failed, finished = root.child_runs
    assert failed.error is not None
    assert "gone" in failed.error
    assert finished.error is None
    assert {"nostream", "relay:delegate"} <= set(finished.tags or [])
    assert finished.outputs is not None
    usage = finished.outputs["generations"][0][0]["message"]["kwargs"]["usage_metadata"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (12, 3)


class Tokens(BaseCallbackHandler):
    """Tokens of hosted runs, and how many came after their run had ended."""

    def __init__(self) -> None:
        self.hosted: set[UUID] = set()
        self.tokens: list[str] = []

    def on_chat_model_start(self, *args: Any, run_id: UUID, tags: Any = None, **kw: Any) -> None:
        if "relay:delegate" in (tags or []):
            self.hosted.add(run_id)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kw: Any) -> None:
        if run_id in self.hosted:
            self.tokens.append(token)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kw: Any) -> None:
        if run_id in self.hosted:
            self.tokens.append("<end>")


@pytest.mark.parametrize("path", ["stream", "astream"])
async def test_hosted_tokens_are_told_once_each_and_none_after_the_end(path: str) -> None:
    handler = Tokens()
    model = relay(delegate=ScriptedDelegate("one two END three four"), stop=["END"])
    config: Any = {"callbacks": [handler]}
    if path == "stream":
        list(model.stream("?", config))
    else:
        [chunk async for chunk in model.astream("?", config)]
    assert handler.tokens == ["one", " two", " END", "<end>"]


def test_a_cut_of_ours_ends_its_run_well() -> None:
    tree = Tree()
    model = relay(stop=["blue"])
    model.invoke("?", {"callbacks": [tree]})
    (child,) = tree.roots[0].child_runs
    assert child.error is None
    assert child.outputs is not None
    message = child.outputs["generations"][0][0]["message"]["kwargs"]
    assert message["response_metadata"]["finish_reason"] == "cut"
    assert "usage_metadata" not in message or message["usage_metadata"] is None


def test_totals_nest_and_do_not_leak() -> None:
    model = relay(prices={"scripted": (1, 2)})
    with get_relay_callback() as outer:
        model.invoke("?")
        with get_relay_callback() as inner:
            model.invoke("?")
    model.invoke("?")
    assert inner.calls == 1
    assert outer.calls == 1
    assert str(inner).startswith("1 call (1 finished, 0 failed), 0 denied")
