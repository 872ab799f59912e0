"""Both drivers give everything back, however the answer ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from langchain_relay.engine.drivers import adrive, drive
from langchain_relay.engine.events import Event, SpanOpened
from langchain_relay.engine.loop import Flow, relay
from langchain_relay.engine.policy import AnswerContext
from langchain_relay.engine.values import LocalSession, Sampling, SpanEnd, SpanPiece, Turn
from langchain_relay.policies import CallTokens
from langchain_relay.testing import ScriptedLocal
from tests.unit_tests.engine.rig import ScriptedSource, bounds

PIECES = ("a ", "<call>8</call>", "b")


def start(source: ScriptedSource) -> tuple[ScriptedLocal, LocalSession, Flow]:
    local = ScriptedLocal(*PIECES)
    session = local.open([Turn("user", "?")], Sampling()).result()
    watch = CallTokens().watch(AnswerContext(session.count))
    return local, session, relay(watch, bounds(), count=session.count)


def test_async_and_sync_give_the_same_events() -> None:
    def sync() -> list[Event]:
        source = ScriptedSource([["x ", "stop"]])
        _, session, flow = start(source)
        return list(drive(flow, session, source))

    async def both() -> list[Event]:
        source = ScriptedSource([["x ", "stop"]])
        _, session, flow = start(source)
        return [event async for event in adrive(flow, session, source)]

    assert asyncio.run(both()) == sync()


@pytest.mark.parametrize("read", range(7))
def test_closing_after_any_event_gives_everything_back(read: int) -> None:
    source = ScriptedSource([["x ", "stop"]])
    local, session, flow = start(source)
    events: Iterator[Event] = drive(flow, session, source)
    for _ in range(read):
        next(events, None)
    events.close()  # type: ignore[attr-defined]  # drive is a generator
    if read:
        assert (local.open_sessions, source.closed) == (0, 1)


def test_an_exception_in_the_source_gives_the_sequence_back() -> None:
    class Broken(ScriptedSource):
        def pull(self) -> SpanPiece | SpanEnd:
            raise RuntimeError("boom")

    source = Broken([["x"]])
    local, session, flow = start(source)
    with pytest.raises(RuntimeError, match="boom"):
        list(drive(flow, session, source))
    assert (local.open_sessions, source.closed) == (0, 1)


async def test_a_cancelled_task_closes_its_span_before_it_ends() -> None:
    closing = asyncio.Event()

    class Slow(ScriptedSource):
        async def apull(self) -> SpanPiece | SpanEnd:
            await asyncio.sleep(60)
            raise AssertionError("cancelled before")

        async def aclose(self) -> SpanEnd | None:
            closing.set()
            await asyncio.sleep(0.05)  # a second cancel lands in here
            return await super().aclose()

    source = Slow([["x"]])
    local, session, flow = start(source)

    async def consume() -> None:
        async for event in adrive(flow, session, source):
            if isinstance(event, SpanOpened):
                opened.set()

    opened = asyncio.Event()
    task = asyncio.create_task(consume())
    await opened.wait()
    task.cancel()
    await closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (local.open_sessions, source.closed) == (0, 1)
