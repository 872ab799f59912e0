"""Eight ways to run an answer, in three places, under two policies: one answer.

Same text, same spans, same charges, and exactly one event of each kind for each call, on the
model's own run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.engine.policy import Policy
from langchain_relay.policies import CallTokens, SwitchCues
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"
)


@dataclass
class Watcher(BaseCallbackHandler):
    """Writes down relay events and which runs are whose."""

    events: list[tuple[str, str, UUID]] = field(default_factory=list)
    relay_runs: list[UUID] = field(default_factory=list)
    child_parents: list[UUID | None] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    __hash__ = object.__hash__

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: UUID, parent_run_id: Any = None, **kw: Any
    ) -> None:
        if "relay:delegate" in (kw.get("tags") or []):
            self.child_parents.append(parent_run_id)
        else:
            self.relay_runs.append(run_id)

    def on_llm_error(self, error: BaseException, **kw: Any) -> None:
        self.errors.append(error)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kw: Any) -> None:
        self.events.append((name, data.get("call_id", ""), run_id))


# --- three places -------------------------------------------------------------------------------


def last_ai(state: Any) -> AIMessage:
    return next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))


@dataclass(frozen=True)
class Place:
    """Where the model runs, what goes in, and how the answer is read out of what comes back."""

    build: Callable[[RelayChatModel], Runnable[Any, Any]]
    given: Any
    read: Callable[[Any], AIMessage]


PLACES = {
    "alone": Place(lambda model: model, "Why?", lambda message: message),
    "chain": Place(
        lambda model: ChatPromptTemplate.from_template("{q}") | model | RunnableLambda(lambda m: m),
        {"q": "Why?"},
        lambda message: message,
    ),
    "agent": Place(
        lambda model: create_agent(model, []),
        {"messages": [HumanMessage("Why?")]},
        last_ai,
    ),
}


# --- eight paths --------------------------------------------------------------------------------


def added(chunks: list[Any], place: Place) -> AIMessage:
    if place is PLACES["agent"]:  # stream_mode="messages" gives (chunk, metadata)
        chunks = [chunk for chunk, _ in chunks if isinstance(chunk, AIMessageChunk)]
    whole: AIMessage = reduce(lambda a, b: a + b, chunks)
    return whole


def streaming(place: Place) -> dict[str, Any]:
    return {"stream_mode": "messages"} if place is PLACES["agent"] else {}


def invoke(app: Any, place: Place, config: Any) -> AIMessage:
    return place.read(app.invoke(place.given, config))


def stream(app: Any, place: Place, config: Any) -> AIMessage:
    return added(list(app.stream(place.given, config, **streaming(place))), place)


def ainvoke(app: Any, place: Place, config: Any) -> AIMessage:
    return place.read(asyncio.run(app.ainvoke(place.given, config)))


def astream(app: Any, place: Place, config: Any) -> AIMessage:
    async def run() -> list[Any]:
        return [c async for c in app.astream(place.given, config, **streaming(place))]

    return added(asyncio.run(run()), place)


def astream_events(app: Any, place: Place, config: Any) -> AIMessage:
    async def run() -> list[Any]:
        return [e async for e in app.astream_events(place.given, config, version="v2")]

    ends = [
        e["data"]["output"]
        for e in asyncio.run(run())
        if e["event"] == "on_chat_model_end" and "relay:delegate" not in e["tags"]
    ]
    (end,) = ends
    assert isinstance(end, AIMessage)
    return end


def stream_events_v3(app: Any, place: Place, config: Any) -> AIMessage:
    run = app.stream_events(place.given, config, version="v3")
    list(run)
    return place.read(run.output)


def batch(app: Any, place: Place, config: Any) -> AIMessage:
    return place.read(app.batch([place.given], config)[0])


def abatch(app: Any, place: Place, config: Any) -> AIMessage:
    return place.read(asyncio.run(app.abatch([place.given], config))[0])


PATHS = [invoke, stream, ainvoke, astream, astream_events, stream_events_v3, batch, abatch]


# --- two policies -------------------------------------------------------------------------------

CASES: dict[str, tuple[Policy, tuple[str, ...], ScriptedDelegate, str, list[tuple[str, str]]]] = {
    "CallTokens": (
        CallTokens(),
        ("It is ", "<call>8</call>", "so.", " <call>", "7</call>", "!"),
        ScriptedDelegate("blue ", " indeed", usage=(12, 3)),
        "It is blue so. indeed!",
        [("local", "It is "), ("delegate", "blue "), ("local", "so. "), ("delegate", "indeed"),
         ("local", "!")],
    ),
    "SwitchCues": (
        SwitchCues(cues=("Thus",)),
        (" it", " is.", " ", "The end."),
        ScriptedDelegate("One two three four five six Thus nine", " Done.", usage=(12, 3)),
        "One two three four five six Thus it is. Done.The end.",
        [("delegate", "One two three four five six Thus"), ("local", " it is."),
         ("delegate", " Done."), ("local", "The end.")],
    ),
}  # fmt: skip


TABLE = [
    (path, place)
    for path in PATHS
    for place in PLACES
    # LangChain has no v3 events for sequences: `RunnableSequence` raises NotImplementedError.
    if not (path is stream_events_v3 and place == "chain")
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("path", "place"), TABLE, ids=lambda part: getattr(part, "__name__", part))
def test_every_path_gives_the_same_answer(
    path: Callable[[Any, Place, Any], AIMessage], place: str, case: str
) -> None:
    policy, pieces, delegate, text, spans = CASES[case]
    local = ScriptedLocal(*pieces)
    hosted = ScriptedDelegate(*delegate._replies, usage=(12, 3))
    model = RelayChatModel(
        model=local,
        delegate=hosted,
        policy=policy,
        prices={"scripted": (1, 2)},
        budget=Budget(usd="1", calls=50),
    )
    watcher = Watcher()

    where = PLACES[place]
    message = path(where.build(model), where, {"callbacks": [watcher]})

    assert message.text == text
    report = relay_report(message)
    assert [(span.author, span.text) for span in report.spans] == spans
    assert "".join(span.text for span in report.spans) == text
    assert [text[span.start : span.end] for span in report.spans] == [s.text for s in report.spans]
    assert report.calls == 2
    assert [c.attempt for c in report.charges] == [1, 1]
    assert len(watcher.relay_runs) == 1
    (own,) = watcher.relay_runs
    assert watcher.child_parents == [own, own]
    assert watcher.errors == []
    assert {run for _, _, run in watcher.events} == {own}
    assert Counter(name for name, _, _ in watcher.events) == {
        "relay.call.started": 2,
        "relay.call.finished": 2,
    }
    assert len({call_id for _, call_id, _ in watcher.events}) == 2
    expected = [12 * 1000 + 3 * 2000] * 2 if case == "CallTokens" else None
    costs = [c.cost_nanousd for c in report.charges]
    if expected is None:
        # The first span was cut at the cue, without usage: its worst case is booked.
        assert report.charges[0].estimated
        assert costs[1] == 12 * 1000 + 3 * 2000
        # 4 bytes of question, 16 for each of its frame and the empty draft's; n = 64.
        assert costs[0] == (4 + 16 + 16) * 1000 + 64 * 2000
    else:
        assert costs == expected
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == sum(
        s.tokens for s in report.spans if s.author == "local"
    ) + (2 if case == "CallTokens" else 0)
    assert local.open_sessions == 0
    assert hosted.open_streams == 0
