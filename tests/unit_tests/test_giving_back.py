"""However an answer ends, nothing is sent any more, nothing is lost and nothing stays open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter

from langchain_relay import Budget, RelayChatModel, errors, get_relay_callback, relay_report
from langchain_relay.chat_models import DEFAULT_LEDGER
from langchain_relay.delegates import LocalDelegate
from langchain_relay.delegates.loops import PerLoop
from langchain_relay.engine.ledger import MemoryLedger
from langchain_relay.engine.policy import AnswerContext, Watch
from langchain_relay.engine.values import Attempt, Delta, Sampling
from langchain_relay.policies import CallTokens
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>8</call>", "so.")
PRICES = {"scripted": (1, 2)}


@pytest.fixture(autouse=True)
def _the_ledger_is_as_it_was() -> Any:
    before = set(DEFAULT_LEDGER._books), set(DEFAULT_LEDGER._open)
    yield
    # What earlier tests left to the collector may go meanwhile.
    assert set(DEFAULT_LEDGER._books) <= before[0]
    assert set(DEFAULT_LEDGER._open) <= before[1]


def relay(local: ScriptedLocal, delegate: Any, **fields: Any) -> RelayChatModel:
    settings: dict[str, Any] = {"budget": Budget(calls=9), "prices": PRICES, **fields}
    return RelayChatModel(model=local, delegate=delegate, **settings)


def is_hosted(kwargs: dict[str, Any]) -> bool:
    return "relay:delegate" in (kwargs.get("tags") or [])


async def test_nothing_is_sent_after_a_cancel_that_comes_while_a_failed_attempt_is_closed() -> None:
    closing = asyncio.Event()

    class Slow(AsyncCallbackHandler):
        async def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            if is_hosted(kwargs):
                closing.set()
                await asyncio.sleep(0.2)

    local, hosted = ScriptedLocal(*PIECES), FailingDelegate(ConnectionError("x"), then="blue sky ")
    task = asyncio.create_task(relay(local, hosted).ainvoke("?", {"callbacks": [Slow()]}))
    await closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(hosted.attempts) == 1
    assert (local.open_sessions, hosted.open_streams) == (0, 0)


def test_nothing_is_sent_after_a_handler_of_the_failed_attempt_raised() -> None:
    class Raising(BaseCallbackHandler):
        raise_error = True

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            raise RuntimeError("a handler's own fault")

    local, hosted = ScriptedLocal(*PIECES), FailingDelegate(ConnectionError("x"), then="blue ")
    with pytest.raises(RuntimeError, match="own fault"):
        relay(local, hosted).invoke("?", {"callbacks": [Raising()]})
    assert len(hosted.attempts) == 1
    assert local.open_sessions == 0


class Endless(ScriptedDelegate):
    """Writes on for as long as somebody reads."""

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        self.open_streams += 1
        try:
            while True:
                yield Delta("blue ")
        finally:
            self.open_streams -= 1

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        for delta in self.stream(attempt):
            await asyncio.sleep(0)
            yield delta


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
async def test_a_ledger_that_fails_leaves_no_stream_open(path: str) -> None:
    class Torn(MemoryLedger):
        def settle(self, reservation: Any, actual: Any, **facts: Any) -> bool:
            super().settle(reservation, actual, **facts)
            raise OSError("the disk is full")

    hosted = Endless("")
    model = relay(ScriptedLocal(*PIECES), hosted, ledger=Torn())
    message = await model.ainvoke("?") if path == "ainvoke" else model.invoke("?")
    assert relay_report(message).charges[0].unbooked  # it breaks no answer
    async with asyncio.timeout(5):
        while hosted.open_streams:
            await asyncio.sleep(0.01)


EVENTS = ["relay.call.started", "relay.call.finished", "relay.call.failed", "relay.call.denied"]


@pytest.mark.parametrize("at", EVENTS)
@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
async def test_a_handler_that_raises_at_any_event(at: str, path: str) -> None:
    class Raising(BaseCallbackHandler):
        raise_error = True

        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            if name == at:
                raise RuntimeError(at)

    class Counting(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            self.seen.append(name)

    hosted: ScriptedDelegate = ScriptedDelegate("blue ")
    if at.endswith("failed"):
        hosted = FailingDelegate(ConnectionError("x"), times=9)
    budget = Budget(calls=0) if at.endswith("denied") else Budget(calls=9)
    local, counting = ScriptedLocal(*PIECES), Counting()
    model = relay(local, hosted, budget=budget, max_retries=0)
    config: Any = {"callbacks": [counting, Raising()]}
    with pytest.raises(RuntimeError, match=at):
        await model.ainvoke("?", config) if path == "ainvoke" else model.invoke("?", config)
    assert (local.open_sessions, hosted.open_streams) == (0, 0)
    started = counting.seen.count("relay.call.started")
    ended = counting.seen.count("relay.call.finished") + counting.seen.count("relay.call.failed")
    assert started == ended


def test_a_policy_that_fails_does_not_keep_the_sequence() -> None:
    class Broken(CallTokens):
        def watch(self, context: AnswerContext) -> Watch:
            raise RuntimeError("no watch today")

    local = ScriptedLocal(*PIECES)
    with pytest.raises(RuntimeError, match="no watch today"):
        relay(local, ScriptedDelegate("x"), policy=Broken()).invoke("?")
    assert local.open_sessions == 0


async def test_a_local_delegate_that_is_cancelled_gives_its_sequence_back() -> None:
    expert = ScriptedLocal("blue ")
    stream = LocalDelegate(expert).astream(Attempt((HumanMessage("?"),), "", 3))

    async def read() -> Delta:
        return await anext(stream)

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert expert.open_sessions == 0


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
async def test_a_second_local_model_writes_spans_at_no_cost(path: str) -> None:
    expert = ScriptedLocal("blue ", "and ", "deep ")
    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>2</call>", "so."),
        delegate=LocalDelegate(expert),
        budget=Budget(usd=0),
    )
    message = await model.ainvoke("?") if path == "ainvoke" else model.invoke("?")
    assert message.text == "It is blue and so."
    assert relay_report(message).cost_nanousd == 0
    assert [turn.content for turn in expert.prompts[0]] == ["?", "It is"]
    assert expert.open_sessions == 0


def test_text_no_encoding_can_carry_is_answered_locally() -> None:
    local = ScriptedLocal(*PIECES)
    assert relay(local, ScriptedDelegate("blue ")).invoke("a lone \ud83d half").text.endswith("so.")


def test_a_delegate_that_cannot_say_its_bound_fails_and_the_local_model_goes_on() -> None:
    class Broken(ScriptedDelegate):
        def input_bound(self, attempt: Attempt) -> int:
            raise LookupError("no bound")

    local = ScriptedLocal(*PIECES)
    answer = relay(local, Broken("blue ")).invoke("?")
    events = answer.response_metadata["relay"]["events"]
    assert events[-1]["type"] == "relay.call.failed"
    assert "LookupError: no bound" in events[-1]["error"]
    assert local.open_sessions == 0


# --- the rate limiter ---------------------------------------------------------------------------


def limiter() -> InMemoryRateLimiter:
    """Admits nothing for a hundred seconds."""
    return InMemoryRateLimiter(requests_per_second=0.01, check_every_n_seconds=0.02)


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
async def test_the_rate_limiter_is_under_the_deadline_and_what_was_not_sent_is_free(
    path: str,
) -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue ")
    model = relay(local, hosted, delegate_rate_limiter=limiter(), timeout=0.2)
    message = await model.ainvoke("?") if path == "ainvoke" else model.invoke("?")
    assert (message.text, hosted.attempts) == ("It is so.", [])
    (charge,) = relay_report(message).charges
    assert (charge.released, charge.cost_nanousd) == (True, 0)


async def test_a_cancel_while_the_limiter_waits_costs_nothing() -> None:
    waits = asyncio.Event()

    class Waiting(InMemoryRateLimiter):
        async def aacquire(self, *, blocking: bool = True) -> bool:
            waits.set()
            return await super().aacquire(blocking=blocking)

    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue ")
    model = relay(local, hosted, delegate_rate_limiter=Waiting(requests_per_second=0.01))
    with get_relay_callback() as totals:
        task = asyncio.create_task(model.ainvoke("?"))
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (hosted.attempts, totals.failed, totals.cost_nanousd) == ([], 1, 0)


# --- streams that end badly ---------------------------------------------------------------------


class WillNotClose(ScriptedDelegate):
    """Its stream raises, or takes for ever, when it is closed."""

    def __init__(self, *replies: str, hang: bool) -> None:
        super().__init__(*replies)
        self._hang = hang

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        try:
            yield Delta(text="blue ")
            yield Delta(text="sky END ")
            yield Delta(text="never")
        finally:
            if self._hang:
                await asyncio.sleep(3600)
            raise RuntimeError("will not close")


@pytest.mark.parametrize("hang", [False, True])
async def test_a_stream_that_does_not_close_does_not_hold_up_the_answer(hang: bool) -> None:
    model = relay(ScriptedLocal(*PIECES), WillNotClose("x", hang=hang), stop=["END"])
    assert (await model.ainvoke("?")).text == "It is blue sky "


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
async def test_a_timeout_of_the_delegates_own_is_told_from_ours(path: str) -> None:
    class Timing(ScriptedDelegate):
        def stream(self, attempt: Attempt) -> Any:
            raise TimeoutError("its own")

        async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
            raise TimeoutError("its own")
            yield Delta()

    model = relay(ScriptedLocal(*PIECES), Timing())
    message = await model.ainvoke("?") if path == "ainvoke" else model.invoke("?")
    failed = message.response_metadata["relay"]["events"][1]
    assert failed["error"] == "the delegate raised TimeoutError: its own"


def test_text_a_provider_withholds_is_a_failure_and_is_charged() -> None:
    class Filtered(ScriptedDelegate):
        def stream(self, attempt: Attempt) -> Any:
            for delta in super().stream(attempt):
                yield (
                    delta
                    if delta.finish is None
                    else Delta(usage=delta.usage, finish="content_filter")
                )

    message = relay(ScriptedLocal(*PIECES), Filtered("blue ", usage=(12, 3))).invoke("?")
    report = relay_report(message)
    assert (message.text, report.failed, report.cost_nanousd) == ("It is blue so.", 1, 18_000)


# --- a relay inside a relay ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
async def test_a_relay_as_the_delegate_of_a_relay_keeps_its_own_books(path: str) -> None:
    inner = RelayChatModel(
        model=ScriptedLocal("in", "<call>4</call>", "ner "),
        delegate=ScriptedDelegate("deep ", usage=(5, 1)),
        prices=PRICES,
        budget=Budget(calls=9),
    )
    outer = RelayChatModel(
        model=ScriptedLocal("A ", "<call>8</call>", "B ", "<call>8</call>", "C"),
        delegate=inner,
        budget=Budget(calls=1),
    )
    message = await outer.ainvoke("?") if path == "ainvoke" else outer.invoke("?")
    report = relay_report(message)
    assert (report.calls, report.denied) == (1, 1)
    ids = [e["call_id"] for e in message.response_metadata["relay"]["events"] if "call_id" in e]
    assert len(set(ids)) == 2


# --- the second review --------------------------------------------------------------------------


def test_the_hosted_models_own_rate_limiter_is_under_the_deadline_too() -> None:
    chat = GenericFakeChatModel(messages=iter(["blue"]), rate_limiter=limiter())
    model = RelayChatModel(model=ScriptedLocal(*PIECES), delegate=chat, timeout=0.2)
    message = model.invoke("?")
    assert message.text == "It is so."
    (charge,) = relay_report(message).charges
    assert charge.released


@pytest.mark.parametrize("word", ["failed", "cancelled", "incomplete"])
def test_a_provider_that_breaks_off_has_not_finished(word: str) -> None:
    class BrokenOff(ScriptedDelegate):
        def stream(self, attempt: Attempt) -> Any:
            for delta in super().stream(attempt):
                yield delta if delta.finish is None else Delta(finish=word)

    local = ScriptedLocal(*PIECES)
    message = relay(local, BrokenOff("blue "), max_retries=0).invoke("?")
    assert message.text == "It is blue so."
    assert relay_report(message).failed == 1


def test_a_mistake_found_before_sending_is_not_charged() -> None:
    class Mistaken(ScriptedDelegate):
        def stream(self, attempt: Attempt) -> Any:
            raise errors.UsageMistake("this client is async only")

    message = relay(ScriptedLocal(*PIECES), Mistaken()).invoke("?")
    (charge,) = relay_report(message).charges
    assert (charge.released, charge.cost_nanousd) == (True, 0)


def test_one_model_in_both_roles_is_refused() -> None:
    local = ScriptedLocal(*PIECES)
    with pytest.raises(errors.UsageMistake, match="of its own"):
        RelayChatModel(model=local, delegate=LocalDelegate(local))
    model = RelayChatModel(model=ScriptedLocal("x"), delegate=LocalDelegate(local))
    with pytest.raises(errors.UsageMistake, match="of its own"):
        model.invoke("?", model=local)


def test_local_delegates_that_sample_differently_are_told_apart() -> None:
    expert = ScriptedLocal("x")
    warm = LocalDelegate(expert, sampling=Sampling(temperature=2.0, seed=9))
    assert warm.fingerprint != LocalDelegate(expert).fingerprint


def test_a_closed_loop_keeps_no_client() -> None:
    made = PerLoop[object]()

    async def use() -> None:
        made.get(asyncio.get_running_loop)  # a value that holds on to its loop

    for _ in range(5):
        asyncio.run(use())
    assert len(made._made) <= 1


def test_loops_of_several_threads_share_a_delegate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads find the same closed loop, and both want to drop it."""
    both = threading.Barrier(2)

    class Loop:
        closed = False

        def is_closed(self) -> bool:
            if self.closed:
                with suppress(threading.BrokenBarrierError):
                    both.wait(0.5)  # where only one may look at a time nobody else comes
            return self.closed

    made, gone = PerLoop[object](), Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: gone)
    made.get(object)
    gone.closed = True
    here = [Loop(), Loop()]
    running = iter(here)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: next(running))
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(made.get, object) for _ in range(2)]:
            one.result(10)
    assert len(made._made) == len(here)


@pytest.mark.parametrize("wrong", [{"top_k": 2.5}, {"seed": "7"}, {"seed": 1.5}])
def test_a_number_of_the_wrong_kind_per_call_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageMistake, match=next(iter(wrong))):
        relay(ScriptedLocal("Hi."), ScriptedDelegate("x")).invoke("?", **wrong)
