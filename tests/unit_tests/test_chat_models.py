"""What `RelayChatModel` promises beyond parity: bounds, views, failures, and giving back."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_relay import (
    Budget,
    BudgetExceeded,
    RelayChatModel,
    errors,
    get_relay_callback,
    relay_report,
)
from langchain_relay.chat_models import DEFAULT_LEDGER
from langchain_relay.engine.values import Turn
from langchain_relay.policies import Always, Never
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>8</call>", "so.")


def relay(
    *pieces: str, delegate: Any = None, local: ScriptedLocal | None = None, **fields: Any
) -> RelayChatModel:
    return RelayChatModel(
        model=local or ScriptedLocal(*(pieces or PIECES)),
        delegate=delegate or ScriptedDelegate("blue ", usage=(12, 3)),
        **fields,
    )


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


# --- views --------------------------------------------------------------------------------------


def test_the_command_reaches_neither_user_nor_delegate() -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue ")
    message = relay(local=local, delegate=hosted).invoke("Why?")
    assert message.text == "It is blue so."
    assert hosted.attempts[0].draft == "It is "
    assert [m.content for m in hosted.attempts[0].messages] == ["Why?"]
    assert local.contexts == ["It is <call>8</call>blue so."]


def test_the_lesson_is_the_local_models_alone_and_the_users_system_prompt_stays_first() -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue ")
    model = relay(local=local, delegate=hosted)
    model.invoke([SystemMessage("Be kind."), HumanMessage("Why?")])
    (turns,) = local.prompts
    assert turns[0].role == "system"
    assert turns[0].content.startswith("Be kind.")
    assert "<call>" in "".join(turn.content for turn in turns)
    assert turns[-1] == Turn("user", "Why?")
    sent = "".join(str(m.content) for m in hosted.attempts[0].messages)
    assert sent == "Be kind.Why?"


@pytest.mark.parametrize("fields", [{"teach": "none"}, {"policy": Never()}, {"policy": Always()}])
def test_nothing_is_taught_where_no_command_is_wanted(fields: dict[str, Any]) -> None:
    local = ScriptedLocal("Hi.")
    relay(local=local, **fields).invoke("Why?")
    assert local.prompts == [(Turn("user", "Why?"),)]


TAGGED = st.lists(
    st.sampled_from(["<call>9</call>", "<call>", "</call>", "9", " ", "x"]), max_size=8
)


@given(
    question=TAGGED,
    system=TAGGED,
    tool=TAGGED,
    span=TAGGED,
    local=st.lists(st.sampled_from(["a", " ", "b."]), max_size=4),
)
def test_only_local_text_can_call(
    question: list[str], system: list[str], tool: list[str], span: list[str], local: list[str]
) -> None:
    hosted = ScriptedDelegate("".join(span))
    model = relay(*local, "<call>500</call>", *local, "c", delegate=hosted)
    messages = [
        SystemMessage("".join(system)),
        HumanMessage("".join(question)),
        AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": "1"}]),
        ToolMessage("".join(tool), tool_call_id="1"),
    ]
    message = model.invoke(messages)
    assert len(hosted.attempts) == 1
    draft = "".join(local)
    assert message.text.startswith(draft)
    assert message.text.endswith("".join(local) + "c")
    # At the seam only a blank that is there already may go.
    assert (
        message.text
        in {
            draft + "".join(span) + draft + "c",
            draft + "".join(span).lstrip() + draft + "c",
            draft.rstrip() + "".join(span) + draft + "c",
        }
        or not draft.strip()
    )


def test_a_later_turn_sees_its_commands_again_and_the_delegate_does_not() -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue ")
    model = relay(local=local, delegate=hosted, teach="none")
    first = model.invoke("Why?")
    model.invoke([HumanMessage("Why?"), first, HumanMessage("And now?")])
    assert local.prompts[1][1] == Turn("assistant", "It is <call>8</call>blue so.")
    assert str(hosted.attempts[1].messages[1].content) == "It is blue so."


# --- per call -----------------------------------------------------------------------------------


def test_delegation_never_bans_the_command_and_sends_nothing() -> None:
    hosted = ScriptedDelegate("blue ")
    message = relay(delegate=hosted).invoke("Why?", delegation="never")
    assert (message.text, hosted.attempts) == ("It is so.", [])


def test_delegation_always_lets_the_hosted_model_write() -> None:
    message = relay().invoke("Why?", delegation="always")
    assert message.text == "blue "
    assert relay_report(message).delegated_share == 1.0


def test_delegate_model_is_asked_and_priced() -> None:
    hosted = ScriptedDelegate("blue ", usage=(10, 10))
    model = relay(delegate=hosted, prices={"scripted": (1, 1), "big": (100, 100)})
    message = model.invoke("Why?", delegate_model="big")
    assert hosted.attempts[0].model == "big"
    (charge,) = relay_report(message).charges
    assert (charge.model, charge.cost_nanousd) == ("big", 20 * 100_000)


def test_an_unpriced_delegate_model_under_a_budget_is_refused_before_anything_is_written() -> None:
    local = ScriptedLocal(*PIECES)
    model = relay(local=local, budget=Budget(usd=1), prices={"scripted": (1, 1)})
    with pytest.raises(errors.PriceUnknown, match="unheard-of"):
        model.invoke("Why?", delegate_model="unheard-of")
    assert local.prompts == []


def test_model_overrides_the_local_model_for_one_call() -> None:
    model = relay("Hi.")
    message = model.invoke("?", model=ScriptedLocal("Ho."))
    assert message.text == "Ho."
    assert model.invoke("?").text == "Hi."
    with pytest.raises(errors.ModelNotFound, match="smollm2-135m"):
        model.invoke("?", model="smolm")


def test_sampling_is_the_calls_before_the_models() -> None:
    local = ScriptedLocal("Hi.")
    relay(local=local, temperature=0.5, seed=1).invoke("?", temperature=0.0)
    assert (local.samplings[0].temperature, local.samplings[0].seed) == (0.0, 1)


def test_stop_is_matched_on_what_the_user_sees() -> None:
    model = relay("a E", "<call>9</call>", "c", delegate=ScriptedDelegate("ND d"))
    message = model.invoke("?", stop=["END"])
    assert message.text == "a "
    assert message.response_metadata["finish_reason"] == "stop"


def test_max_tokens_bounds_both_writers_together() -> None:
    message = relay("a ", "<call>9</call>", "b ", "c", max_tokens=3).invoke("?")
    assert message.text == "a blue b "
    assert message.response_metadata["finish_reason"] == "length"


def test_a_per_call_setting_nobody_reads_is_an_error() -> None:
    with pytest.raises(errors.UsageMistake, match="temprature"):
        relay().invoke("?", temprature=0.1)
    with pytest.raises(errors.UsageMistake, match="'sometimes'"):
        relay().invoke("?", delegation="sometimes")


# --- usage and report ---------------------------------------------------------------------------


def test_usage_counts_local_tokens_only() -> None:
    message = relay(teach="none").invoke("one two")
    assert message.usage_metadata == {
        "input_tokens": 2,
        "output_tokens": 3,
        "total_tokens": 5,
        "input_token_details": {"cache_read": 0},
    }


def test_a_report_adds_up_and_shows_itself() -> None:
    report = relay_report(relay(prices={"scripted": (1, 2)}).invoke("Why?"))
    assert (report.calls, report.denied, report.failed) == (1, 0, 0)
    assert report.cost_nanousd == 18_000
    assert "It is [blue ]so." in str(report)
    assert "0.000018 USD" in str(report)
    assert ">blue </span>" in report._repr_html_()


def test_an_unknown_price_is_not_zero() -> None:
    report = relay_report(relay().invoke("Why?"))
    assert report.cost_nanousd is None
    assert report.delegate_only_cost_nanousd is None
    assert "unknown" in str(report)


def test_a_message_of_another_model_has_no_report() -> None:
    with pytest.raises(errors.UsageMistake, match="no relay report"):
        relay_report(AIMessage("hi"))


def test_a_cache_hit_costs_nothing_and_tells_no_event() -> None:
    hosted = ScriptedDelegate("blue ", usage=(12, 3))
    model = relay(delegate=hosted, prices={"scripted": (1, 2)}, cache=InMemoryCache())
    assert relay_report(model.invoke("Why?")).cost_nanousd == 18_000
    with get_relay_callback() as totals:
        again = model.invoke("Why?")
    assert again.text == "It is blue so."
    assert (totals.calls, len(hosted.attempts)) == (0, 1)
    assert relay_report(again).cost_nanousd == 0


def test_the_cache_tells_relays_apart() -> None:
    cache = InMemoryCache()
    a = relay("a", cache=cache)
    assert a.invoke("?").text == "a"
    assert relay("b", cache=cache).invoke("?").text == "b"
    assert a.invoke("?", delegation="never").text == "a"


# --- money --------------------------------------------------------------------------------------


def test_a_budget_refuses_and_the_local_model_goes_on() -> None:
    hosted = ScriptedDelegate("blue ", usage=(12, 3))
    model = relay(delegate=hosted, budget=Budget(usd="0.000001"), prices={"scripted": (1, 2)})
    with get_relay_callback() as totals:
        message = model.invoke("Why?")
    assert message.text == "It is so."
    assert (totals.calls, totals.denied, hosted.attempts) == (0, 1, [])
    (event,) = message.response_metadata["relay"]["events"]
    assert (event["reason"], event["unit"], event["limit"]) == ("budget", "usd", 1000)
    assert event["needed"] > event["left"] == 1000


def test_a_refusal_can_be_raised_and_is_caught_by_its_public_name() -> None:
    model = relay(budget=Budget(calls=0), on_budget="raise")
    with pytest.raises(BudgetExceeded, match="raise Budget"):
        model.invoke("Why?")


def test_a_refusal_can_end_the_answer() -> None:
    message = relay(budget=Budget(calls=0), on_budget="stop").invoke("Why?")
    assert message.text == "It is "
    assert message.response_metadata["finish_reason"] == "budget"


def test_of_two_budgets_the_tightest_refuses() -> None:
    model = relay(budget=[Budget(calls=5), Budget(tokens=0)])
    message = model.invoke("Why?")
    (event,) = message.response_metadata["relay"]["events"]
    assert event["unit"] == "tokens"


def test_a_budget_belongs_to_one_answer_and_its_account_is_forgotten() -> None:
    before = len(DEFAULT_LEDGER._books)
    model = relay(budget=Budget(calls=1))
    assert [model.invoke("Why?").text for _ in range(3)] == ["It is blue so."] * 3
    assert len(DEFAULT_LEDGER._books) == before


def test_a_token_budget_clamps_n() -> None:
    hosted = ScriptedDelegate("blue as the deep sea ", usage=(12, 2))
    message = relay(delegate=hosted, budget=Budget(tokens=2)).invoke("Why?")
    assert hosted.attempts[0].max_tokens == 2
    started = message.response_metadata["relay"]["events"][0]
    assert (started["n"], started["requested_n"]) == (2, 8)
    assert message.text == "It is blue asso."


class Raising(BaseCallbackHandler):
    raise_error = True

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"handler of {name}")


class Sleepy(BaseCallbackHandler):
    async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        raise RuntimeError("never seen on the sync path")


@pytest.mark.parametrize("callbacks", [[], [Sleepy()]])
def test_enforcement_needs_no_callback(callbacks: list[BaseCallbackHandler]) -> None:
    message = relay(budget=Budget(calls=0)).invoke("?", {"callbacks": callbacks})
    assert message.text == "It is so."


# --- failure ------------------------------------------------------------------------------------


def test_a_failed_call_leaves_the_answer_to_the_local_model() -> None:
    hosted = FailingDelegate(ConnectionError("gone"), times=99)
    with get_relay_callback() as totals:
        message = relay(delegate=hosted, max_retries=0).invoke("?")
    assert message.text == "It is so."
    assert (totals.calls, totals.failed, totals.finished) == (1, 1, 0)
    assert "gone" not in message.text


def test_a_failure_can_be_raised() -> None:
    hosted = FailingDelegate(ConnectionError("gone"), times=99)
    with pytest.raises(errors.DelegateError, match="gone") as failed:
        relay(delegate=hosted, max_retries=0, on_delegate_error="raise").invoke("?")
    assert failed.value.is_retryable


def test_a_retry_is_one_call_with_two_attempts() -> None:
    hosted = FailingDelegate(ConnectionError("gone"), times=1, then="blue ", usage=(12, 3))
    with get_relay_callback() as totals:
        message = relay(delegate=hosted, prices={"scripted": (1, 2)}).invoke("?")
    assert message.text == "It is blue so."
    assert (totals.calls, totals.finished, totals.failed, totals.attempts) == (1, 1, 0, 2)
    assert [c.released for c in relay_report(message).charges] == [True, False]


# --- giving back --------------------------------------------------------------------------------


@pytest.mark.parametrize("read", range(1, 8))
def test_closing_a_stream_early_gives_everything_back(read: int) -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue and more ", usage=(12, 3))
    model = relay(local=local, delegate=hosted, budget=Budget(calls=9))
    before = len(DEFAULT_LEDGER._open)
    with get_relay_callback() as totals:
        stream = model.stream("?")
        for _ in range(read):
            next(stream, None)
        stream.close()  # type: ignore[attr-defined]  # a generator
    _wait_until(lambda: hosted.open_streams == 0)
    assert local.open_sessions == 0
    assert len(DEFAULT_LEDGER._open) == before
    assert totals.calls == totals.finished + totals.failed


def _wait_until(true: Any) -> None:
    event = threading.Event()
    for _ in range(200):
        if true():
            return
        event.wait(0.01)
    pytest.fail("it never came true")


async def test_cancelling_a_task_gives_everything_back() -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue and more ", delay_s=30)
    model = relay(local=local, delegate=hosted, budget=Budget(calls=9))
    before = len(DEFAULT_LEDGER._open)
    with get_relay_callback() as totals:
        task = asyncio.create_task(model.ainvoke("?"))
        while not hosted.open_streams:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (local.open_sessions, hosted.open_streams) == (0, 0)
    assert len(DEFAULT_LEDGER._open) == before
    assert (totals.calls, totals.failed) == (1, 1)


@pytest.mark.parametrize("path", ["invoke", "stream", "ainvoke", "astream"])
async def test_a_handler_that_raises_gives_everything_back(path: str) -> None:
    local, hosted = ScriptedLocal(*PIECES), ScriptedDelegate("blue ", usage=(12, 3))
    model = relay(local=local, delegate=hosted, budget=Budget(calls=9))
    before = len(DEFAULT_LEDGER._open)
    config: Any = {"callbacks": [Raising()]}
    with pytest.raises(RuntimeError, match="handler of"):
        match path:
            case "invoke":
                model.invoke("?", config)
            case "stream":
                list(model.stream("?", config))
            case "ainvoke":
                await model.ainvoke("?", config)
            case "astream":
                [chunk async for chunk in model.astream("?", config)]
    assert (local.open_sessions, hosted.open_streams) == (0, 0)
    assert len(DEFAULT_LEDGER._open) == before


def test_the_deadline_holds_against_a_host_that_dawdles() -> None:
    hosted = ScriptedDelegate("one two three ", delay_s=0.6)
    model = relay(delegate=hosted, timeout=1.5)
    with get_relay_callback() as totals:
        message = model.invoke("?")
    assert message.text.startswith("It is one")
    assert message.text.endswith("so.")
    assert (totals.failed, totals.attempts) == (1, 1)


# --- many at once -------------------------------------------------------------------------------


async def test_a_hundred_answers_at_once() -> None:
    local = ScriptedLocal(*PIECES)
    model = relay(local=local, budget=Budget(calls=1))
    messages = await model.abatch([f"q{i}" for i in range(100)])
    assert [m.text for m in messages] == ["It is blue so."] * 100
    assert local.open_sessions == 0


def test_totals_over_many_threads() -> None:
    model = relay(prices={"scripted": (1, 2)})
    with get_relay_callback() as totals:
        model.batch(["?"] * 20)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: model.invoke("?", {"callbacks": [totals]}), range(20)))
    assert (totals.calls, totals.finished, totals.cost_nanousd) == (40, 40, 40 * 18_000)


def test_a_stream_adds_up_to_the_invoked_message() -> None:
    model = relay()
    streamed, invoked = added(list(model.stream("?"))), model.invoke("?")
    assert streamed.content == invoked.content
    assert streamed.usage_metadata == invoked.usage_metadata
    assert {k: v for k, v in streamed.response_metadata.items() if k != "relay"} == {
        k: v for k, v in invoked.response_metadata.items() if k != "relay"
    }


# --- counting -----------------------------------------------------------------------------------


def test_tokens_that_only_begin_a_character_are_counted_with_it() -> None:
    message = relay("", "", "😀", "", "", "b").invoke("?")
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 6
    assert [s.tokens for s in relay_report(message).spans] == [6]
    assert relay("", "", "😀", "b", max_tokens=3).invoke("?").text == "😀"


def test_a_command_inside_its_token_is_counted_once() -> None:
    message = relay("It is <call>8</call>", "so.").invoke("?")
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 2


def test_a_token_limit_shortens_before_money_refuses() -> None:
    hosted = ScriptedDelegate("one two three four five six", usage=(5, 5))
    model = relay(
        "It is ",
        "<call>200</call>",
        "so.",
        delegate=hosted,
        budget=[Budget(usd="0.0002"), Budget(tokens=5)],
        prices={"scripted": (1, 2)},
    )
    model.invoke("?")
    assert hosted.attempts[0].max_tokens == 5


def test_a_budget_that_ends_the_answer_keeps_what_the_local_model_wrote() -> None:
    from langchain_relay.policies import SwitchCues

    pieces = (" it is", " so.", " Bye")
    fields: dict[str, Any] = {
        "policy": SwitchCues(cues=("Thus",), match="substring"),
        "delegate": ScriptedDelegate("one two three four five six Thus"),
        "budget": Budget(calls=1),
    }
    goes_on = relay(*pieces, **fields).invoke("?").text
    ends = relay(*pieces, on_budget="stop", **fields).invoke("?")
    assert goes_on == "one two three four five six Thus it is so. Bye"
    assert ends.text == "one two three four five six Thus it is so."
    assert ends.response_metadata["finish_reason"] == "budget"


def test_a_price_of_the_model_a_host_reports_is_used_where_its_name_has_none() -> None:
    class Renamed(ScriptedDelegate):
        def stream(self, attempt: Any) -> Any:
            for delta in super().stream(attempt):
                yield replace(delta, model="real") if delta.model else delta

    hosted = Renamed("blue ", usage=(12, 3))
    message = relay(delegate=hosted, prices={"real": (1, 2)}).invoke("?")
    assert relay_report(message).cost_nanousd == 18_000


def test_a_stop_string_need_not_be_in_a_list_per_call() -> None:
    assert relay("Hello ", "world").invoke("?", stop="world").text == "Hello "  # type: ignore[arg-type]  # a common slip


def test_totals_passed_inside_a_block_count_in_both() -> None:
    model = relay()
    with get_relay_callback() as outer, get_relay_callback() as inner:
        model.invoke("?", {"callbacks": [outer]})
    assert (outer.calls, inner.calls) == (1, 1)


def test_the_cache_tells_settings_apart() -> None:
    cache, local = InMemoryCache(), ScriptedLocal(*PIECES)
    goes_on = relay(local=local, cache=cache, end_on_delegate_stop=False)
    ends = relay(local=local, cache=cache, end_on_delegate_stop=True)
    assert (goes_on.invoke("?").text, ends.invoke("?").text) == ("It is blue so.", "It is blue ")
