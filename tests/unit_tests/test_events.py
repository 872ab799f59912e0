"""The five events: their schema, their handlers, and where they go."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID, uuid4

import pytest
from jsonschema import Draft202012Validator
from jsonschema import ValidationError as JsonInvalid
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run

from langchain_relay import (
    Budget,
    Charge,
    RelayCallbackHandler,
    RelayChatModel,
    events,
    get_relay_callback,
    schema,
)
from langchain_relay.callbacks import AsyncRelayCallbackHandler, RelayLogHandler
from langchain_relay.callbacks.relay import METHODS
from langchain_relay.errors import UsageMistake
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

DOCS = Path(__file__).parents[2] / "docs"
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


class AsyncTyped(AsyncRelayCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_relay_call_started(self, event: schema.CallStartedEvent, *, run_id: UUID) -> None:
        await asyncio.sleep(0)
        self.seen.append("relay.call.started")

    async def on_relay_call_finished(
        self, event: schema.CallFinishedEvent, *, run_id: UUID
    ) -> None:
        self.seen.append("relay.call.finished")

    async def on_relay_call_denied(self, event: schema.CallDeniedEvent, *, run_id: UUID) -> None:
        self.seen.append("relay.call.denied")

    async def on_relay_call_failed(self, event: schema.CallFailedEvent, *, run_id: UUID) -> None:
        self.seen.append("relay.call.failed")

    async def on_relay_budget_warning(
        self, event: schema.BudgetWarningEvent, *, run_id: UUID
    ) -> None:
        self.seen.append("relay.budget.warning")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", ["invoke", "stream", "ainvoke", "astream"])
async def test_each_event_reaches_its_async_callback_once(case: str, path: str) -> None:
    fields, names = CASES[case]
    if case == "failed":
        fields = {**fields, "delegate": FailingDelegate(ConnectionError("gone"))}
    model, handler = relay(**fields), AsyncTyped()
    config: Any = {"callbacks": [handler]}
    match path:
        case "invoke":
            await asyncio.to_thread(model.invoke, "?", config)
        case "stream":
            await asyncio.to_thread(lambda: list(model.stream("?", config)))
        case "ainvoke":
            await model.ainvoke("?", config)
        case "astream":
            [chunk async for chunk in model.astream("?", config)]
    assert handler.seen == names


def test_both_handlers_have_a_method_for_each_event() -> None:
    assert set(METHODS) == set(SCHEMAS) == set(events.EVENTS)
    for method in METHODS.values():
        assert not inspect.iscoroutinefunction(getattr(RelayCallbackHandler, method))
        assert inspect.iscoroutinefunction(getattr(AsyncRelayCallbackHandler, method))


def test_other_peoples_events_are_left_alone() -> None:
    handler = Typed()
    handler.on_custom_event("somebody.elses", {}, run_id=uuid4())
    assert handler.seen == []


# --- the schema ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_models_and_the_typed_dicts_have_the_same_fields(name: str) -> None:
    fields = set(events.EVENTS[name].model_fields) - {"type"}
    assert fields == set(get_type_hints(SCHEMAS[name]))


def test_a_charge_has_the_fields_of_its_model() -> None:
    assert set(events.ChargeRecord.model_fields) == {field.name for field in fields_of(Charge)}


def test_the_documents_are_current() -> None:
    remedy = "run python -m langchain_relay.events"
    assert (DOCS / "events.md").read_text(encoding="utf-8") == events.markdown(), remedy
    written = json.loads((DOCS / "events.schema.json").read_text(encoding="utf-8"))
    assert written == events.json_schema(), remedy


def test_every_field_is_documented() -> None:
    shapes: list[Any] = [*events.EVENTS.values(), events.ChargeRecord]
    for cls in shapes:
        for name, field in cls.model_fields.items():
            assert field.description or name == "type", f"{cls.__name__}.{name}"


def test_an_event_is_read_back_with_types() -> None:
    message = relay(prices={"scripted": (1, 2)}).invoke("?")
    started, finished = map(events.parse_event, message.response_metadata["relay"]["events"])
    assert isinstance(started, events.CallStarted)
    assert isinstance(finished, events.CallFinished)
    assert (started.n, finished.charges[0].cost_nanousd) == (8, 18_000)


def test_fields_of_a_later_day_do_not_matter() -> None:
    event = {**relay().invoke("?").response_metadata["relay"]["events"][0], "mood": "good"}
    assert events.parse_event(event).version == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"type": "relay.call.begun"}, "'relay.call.begun' is no relay event; they are relay.call"),
        ({"version": 2}, "not as version 1 says"),
        ({"n": -1}, "not as version 1 says"),
        ({"n": "8"}, "not as version 1 says"),
        ({"call_id": None}, "not as version 1 says"),
    ],
)
def test_what_is_no_event_is_refused(change: dict[str, Any], what: str) -> None:
    event = {**relay().invoke("?").response_metadata["relay"]["events"][0], **change}
    with pytest.raises(UsageMistake, match=what):
        events.parse_event(event)
    with pytest.raises(JsonInvalid):
        Draft202012Validator(events.json_schema()).validate(event)


# --- the log ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_each_event_is_one_log_record_with_its_data(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    fields, names = CASES[case]
    if case == "failed":
        fields = {**fields, "delegate": FailingDelegate(ConnectionError("gone"))}
    with caplog.at_level(logging.DEBUG, "langchain_relay.events"):
        relay(**fields).invoke("?", {"callbacks": [RelayLogHandler()]})
    records: list[Any] = [r for r in caplog.records if r.name == "langchain_relay.events"]
    assert [record.relay_event for record in records] == names
    for record in records:
        event = events.parse_event(record.relay_data, record.relay_event)
        assert json.loads(json.dumps(record.relay_data)) == record.relay_data
        assert str(UUID(record.relay_run_id)) == record.relay_run_id
        assert record.getMessage().startswith(f"{event.type}: ")
        loud = event.type not in ("relay.call.started", "relay.call.finished")
        assert (record.levelno >= logging.WARNING) == loud


def test_a_log_line_says_who_how_much_and_at_what_cost(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "langchain_relay.events"):
        model = relay(prices={"scripted": (1, 2)})
        model.invoke("?", {"callbacks": [RelayLogHandler()]})
    (line,) = caplog.messages
    assert "model=scripted n=8 output_tokens=3 why=stop cost=0.000018 USD" in line


def test_a_log_goes_where_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mine"):
        relay().invoke("?", {"callbacks": [RelayLogHandler(logging.getLogger("mine"))]})
    assert [record.name for record in caplog.records] == ["mine", "mine"]


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


# --- totals where many answers are written at once ----------------------------------------------


def test_totals_count_batches_and_threads_of_langchains() -> None:
    model = relay(prices={"scripted": (1, 2)})
    with get_relay_callback() as totals:
        model.batch(["?"] * 20, {"max_concurrency": 8})
    assert (totals.calls, totals.finished, totals.cost_nanousd) == (20, 20, 20 * 18_000)


async def test_totals_count_tasks_and_worker_threads() -> None:
    model = relay(prices={"scripted": (1, 2)})
    with get_relay_callback() as totals:
        await asyncio.gather(*(model.ainvoke("?") for _ in range(20)))
        await model.abatch(["?"] * 10)
        await asyncio.gather(*(asyncio.to_thread(model.invoke, "?") for _ in range(10)))
    assert (totals.calls, totals.finished, totals.cost_nanousd) == (40, 40, 40 * 18_000)


def test_totals_reach_a_bare_thread_only_through_the_config() -> None:
    model = relay(prices={"scripted": (1, 2)})
    start = threading.Barrier(8)

    def work(config: Any) -> None:
        start.wait()
        for _ in range(10):
            model.invoke("?", config)

    with get_relay_callback() as totals:
        configs: list[Any] = [{"callbacks": [totals]}] * 4 + [None] * 4
        threads = [threading.Thread(target=work, args=(config,)) for config in configs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (totals.calls, totals.cost_nanousd) == (40, 40 * 18_000)


@pytest.mark.parametrize("path", ["invoke", "stream", "ainvoke", "astream"])
async def test_totals_count_agents(path: str) -> None:
    agent: Any = create_agent(relay(prices={"scripted": (1, 2)}), [])
    asked = {"messages": [HumanMessage("?")]}
    with get_relay_callback() as totals:
        match path:
            case "invoke":
                agent.invoke(asked)
            case "stream":
                list(agent.stream(asked, stream_mode=["messages", "custom"]))
            case "ainvoke":
                await agent.ainvoke(asked)
            case "astream":
                [part async for part in agent.astream(asked, stream_mode="messages")]
    assert (totals.calls, totals.attempts, totals.cost_nanousd) == (1, 1, 18_000)
