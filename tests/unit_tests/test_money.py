"""Budgets over several answers: whose they are, when they begin anew, and a ledger that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import add_ai_message_chunks

from langchain_relay import (
    Budget,
    BudgetExceeded,
    RelayChatModel,
    errors,
    get_relay_callback,
    relay_report,
)
from langchain_relay.budget import Allowance
from langchain_relay.delegates import wire
from langchain_relay.delegates.pump import Pump
from langchain_relay.delegates.terms import Terms
from langchain_relay.delegates.wire import HostedSide
from langchain_relay.engine.ledger import Account, Amount, MemoryLedger
from langchain_relay.engine.values import SpanEnd, SpanRequest
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>8</call>", "so.")
HELPED, ALONE = "It is blue so.", "It is so."
EVERYTHING = Account("global", "all")

Ask = Callable[..., AIMessage]


def relay(**fields: Any) -> RelayChatModel:
    return RelayChatModel(
        **{
            "model": ScriptedLocal(*PIECES),
            "delegate": ScriptedDelegate("blue ", usage=(12, 3)),
            "prices": {"scripted": (0, 2)},
            "ledger": MemoryLedger(),
            **fields,
        }
    )


@pytest.fixture
def one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window ends while the test runs."""
    window_of = Budget.window_of
    monkeypatch.setattr(Budget, "window_of", lambda budget, now: window_of(budget, 0.0))


def thread(key: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": key}}


def invoke(model: Any, config: Any = None, **kwargs: Any) -> AIMessage:
    message: AIMessage = model.invoke("Why?", config, **kwargs)
    return message


def ainvoke(model: Any, config: Any = None, **kwargs: Any) -> AIMessage:
    message: AIMessage = asyncio.run(model.ainvoke("Why?", config, **kwargs))
    return message


def stream(model: Any, config: Any = None, **kwargs: Any) -> AIMessage:
    chunks: list[AIMessageChunk] = list(model.stream("Why?", config, **kwargs))
    return add_ai_message_chunks(chunks[0], *chunks[1:])


def astream(model: Any, config: Any = None, **kwargs: Any) -> AIMessage:
    async def all_of_them() -> list[Any]:
        return [chunk async for chunk in model.astream("Why?", config, **kwargs)]

    chunks = asyncio.run(all_of_them())
    return add_ai_message_chunks(chunks[0], *chunks[1:])


def batch(model: Any, config: Any = None, **kwargs: Any) -> AIMessage:
    message: AIMessage = model.batch(["Why?"], config, **kwargs)[0]
    return message


every_way = pytest.mark.parametrize("ask", [invoke, ainvoke, stream, astream, batch])


# --- whose it is --------------------------------------------------------------------------------


@every_way
def test_a_thread_has_its_own_budget(ask: Ask) -> None:
    model = relay(budget=Budget(calls=1, scope="thread"))
    texts = [ask(model, thread(key)).text for key in ("a", "a", "b", "b")]
    assert texts == [HELPED, ALONE, HELPED, ALONE]


@every_way
def test_in_a_chain_the_key_comes_from_the_chains_config(ask: Ask) -> None:
    chain = relay(budget=Budget(calls=1, scope="user")) | (lambda message: message)
    config = {"configurable": {"user_id": "u"}}
    assert [ask(chain, config).text for _ in range(2)] == [HELPED, ALONE]


@every_way
def test_a_missing_key_is_an_error_before_anything_is_written(ask: Ask) -> None:
    local = ScriptedLocal(*PIECES)
    model = relay(model=local, budget=Budget(calls=1, scope="thread"))
    with pytest.raises(errors.UsageMistake, match="thread_id"):
        ask(model)
    assert local.prompts == []


@every_way
def test_a_budget_of_all_answers(ask: Ask) -> None:
    model = relay(budget=Budget(calls=2, scope="global"))
    assert [ask(model).text for _ in range(3)] == [HELPED, HELPED, ALONE]


def test_two_models_share_a_ledger() -> None:
    ledger = MemoryLedger()
    budget = Budget(calls=1, scope="global")
    one, other = relay(ledger=ledger, budget=budget), relay(ledger=ledger, budget=budget)
    assert (invoke(one).text, invoke(other).text) == (HELPED, ALONE)


@pytest.mark.usefixtures("one_moment")
def test_the_tightest_of_several_budgets_refuses_and_says_which() -> None:
    model = relay(
        budget=[
            Budget(usd=1),
            Budget(calls=5, scope="thread"),
            Budget(calls=1, scope="project", window="day"),
        ]
    )
    config = {"configurable": {"thread_id": "t", "project": "p"}}
    invoke(model, config)
    denied = relay_events(invoke(model, config), "relay.call.denied")[0]
    assert (denied["unit"], denied["limit"], denied["left"]) == ("calls", 1, 0)
    assert denied["scope"] == "project"
    assert str(denied["window"]).startswith("day ")


def relay_events(message: AIMessage, kind: str) -> list[dict[str, Any]]:
    return [e for e in message.response_metadata["relay"]["events"] if e["type"] == kind]


@every_way
def test_a_budget_for_one_call_comes_on_top(ask: Ask) -> None:
    model = relay(budget=Budget(calls=5))
    assert ask(model, budget=Budget(calls=0)).text == ALONE
    assert ask(model, budget=[Budget(calls=1), Budget(usd=1)]).text == HELPED
    with pytest.raises(errors.UsageMistake, match=r"budget='0\.02'"):
        ask(model, budget="0.02")


def test_a_budget_in_usd_for_one_call_needs_a_price() -> None:
    with pytest.raises(errors.PriceUnknown):
        invoke(relay(prices=None), budget=Budget(usd=1))


# --- what nothing depends on --------------------------------------------------------------------


class Raising(BaseCallbackHandler):
    raise_error = False

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        raise RuntimeError("a handler that fails")

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a handler that fails")


class Async(AsyncCallbackHandler):
    async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        raise RuntimeError("an async handler that fails")


@pytest.mark.parametrize("handlers", [[], [Raising()], [Async()], None])
@every_way
@pytest.mark.parametrize(
    ("limits", "helped"),
    [({"calls": 2}, 2), ({"usd": "0.000027999"}, 2), ({"tokens": 6}, 2), ({"calls": 0}, 0)],
)
def test_enforcement_depends_on_no_callback(
    ask: Ask, handlers: Any, limits: dict[str, Any], helped: int
) -> None:
    model = relay(budget=Budget(scope="global", **limits))
    config = {} if handlers is None else {"callbacks": handlers}
    texts = [ask(model, config).text for _ in range(4)]
    assert texts == [HELPED] * helped + [ALONE] * (4 - helped)


class Insisting(BaseCallbackHandler):
    """Breaks an answer when its request was sent and paid for."""

    raise_error = True

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        if name == "relay.call.finished":
            raise RuntimeError("a handler that fails")


@every_way
@pytest.mark.parametrize("limits", [{"calls": 2}, {"usd": "0.000027999"}, {"tokens": 6}])
def test_a_handler_that_breaks_answers_breaks_no_budget(ask: Ask, limits: dict[str, Any]) -> None:
    hosted, ledger = ScriptedDelegate("blue ", usage=(12, 3)), MemoryLedger()
    budget = Budget(scope="global", **limits)
    model = relay(delegate=hosted, ledger=ledger, budget=budget)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a handler that fails"):
            ask(model, {"callbacks": [Insisting()]})
    spent = ledger.spent(EVERYTHING, now=0.0)
    assert spent == Amount(2 * 6_000, 2 * 3, 2)
    assert ledger.booked(EVERYTHING, now=0.0) == spent  # nothing is left open
    assert [ask(model).text for _ in range(2)] == [ALONE] * 2
    assert len(hosted.attempts) == 2


# --- windows ------------------------------------------------------------------------------------

DAY_S = 24 * 3600.0


def hand_over(
    ledger: MemoryLedger, budget: Budget, now: Callable[[], float], n: int = 8
) -> SpanEnd:
    delegate = ScriptedDelegate("blue ", usage=(12, 3))
    terms = Terms(
        delegate=delegate, messages=(), model=None, price=None, timeout_s=5, max_retries=0,
        allowances=(budget.allowance("r", {}),), ledger=ledger, count=len, now=now, max_tokens=100,
    )  # fmt: skip
    side = HostedSide(terms, parent=None)
    opened = side.open(SpanRequest(str(uuid4()), "", n))
    if isinstance(opened, SpanEnd):
        return opened
    while not isinstance(piece := side.pull(), SpanEnd):
        pass
    return piece


def test_a_budget_begins_anew_with_its_window() -> None:
    ledger, budget = MemoryLedger(), Budget(calls=1, scope="global", window="day")
    ends = [hand_over(ledger, budget, lambda t=t: t).why for t in (0.0, 5.0, DAY_S, DAY_S + 1)]  # type: ignore[misc]
    assert ends == ["stop", "refused", "stop", "refused"]


def test_a_window_that_ends_during_a_call_keeps_what_began_in_it() -> None:
    ledger, budget = MemoryLedger(), Budget(calls=1, scope="global", window="day")
    times = iter([DAY_S - 1])
    hand_over(ledger, budget, lambda: next(times, DAY_S + 1))
    first, second = (budget.allowance("r", {}).account(t) for t in (0.0, DAY_S))
    assert ledger.spent(first, now=DAY_S + 1).calls == 1
    assert ledger.spent(second, now=DAY_S + 1).calls == 0


def test_a_clock_that_goes_back_finds_what_was_spent() -> None:
    ledger, budget = MemoryLedger(), Budget(calls=1, scope="global", window="hour")
    ends = [hand_over(ledger, budget, lambda t=t: t).why for t in (DAY_S, DAY_S - 1, DAY_S)]  # type: ignore[misc]
    assert ends == ["stop", "stop", "refused"]


# --- share --------------------------------------------------------------------------------------


def test_a_share_of_one_answer_shortens_its_spans() -> None:
    hosted = ScriptedDelegate("blue ", usage=(12, 3))
    model = relay(delegate=hosted, budget=Budget(share=0.1), max_tokens=50)
    assert invoke(model).text == HELPED
    assert hosted.attempts[0].max_tokens == 5  # a tenth of 50, though 8 were asked for


def test_a_share_of_nothing_is_never() -> None:
    message = invoke(relay(budget=Budget(share=0), max_tokens=50))
    (denied,) = relay_events(message, "relay.call.denied")
    assert (denied["unit"], denied["limit"]) == ("share", 0)


@every_way
def test_a_share_of_a_thread_counts_what_its_answers_wrote(ask: Ask) -> None:
    hosted = ScriptedDelegate("blue ", usage=(12, 3))
    model = relay(delegate=hosted, budget=Budget(share=0.1, scope="thread"), max_tokens=20)
    texts = [str(ask(model, thread("a")).text) for _ in range(30)]
    limits = [attempt.max_tokens for attempt in hosted.attempts]
    assert texts[:2] == [HELPED, ALONE]  # 2 of 20; then 3 are spent
    written = sum(len(text.split()) for text in texts)
    assert 1 < texts.count(HELPED) < 30
    assert 3 * texts.count(HELPED) <= 0.1 * (written * 2 + 20)
    assert limits[0] == 2
    assert ask(model, thread("b")).text == HELPED  # another thread


def test_a_refusal_for_a_share_says_so() -> None:
    error = BudgetExceeded(unit="share", needed=8, left=1, limit=5)
    assert "8 tokens" in str(error)
    assert "Budget(share=...)" in str(error)


# --- warnings -----------------------------------------------------------------------------------


@every_way
def test_a_warning_comes_once_for_all_answers(ask: Ask) -> None:
    ledger = MemoryLedger()
    budget = Budget(calls=5, scope="thread", warn_at=0.8)
    with get_relay_callback() as totals:
        for _ in range(7):
            ask(relay(ledger=ledger, budget=budget), thread("a"))
        assert totals.warnings == 1
        for _ in range(4):
            ask(relay(ledger=ledger, budget=budget), thread("b"))
        assert totals.warnings == 2
    assert ledger.spent(Account("thread", "a"), now=0.0).calls == 5


@every_way
@pytest.mark.usefixtures("one_moment")
def test_windows_of_one_scope_are_each_warned_of_once(ask: Ask) -> None:
    budgets = [
        Budget(calls=9, scope="global", window=window, warn_at=0.1) for window in ("month", None)
    ]
    model = relay(budget=budgets)
    with get_relay_callback() as totals:
        ask(model)
        assert totals.warnings == 2
        ask(model)
        assert totals.warnings == 2


@every_way
def test_a_run_id_that_comes_again_is_another_answer(ask: Ask) -> None:
    ledger = MemoryLedger()
    model = relay(ledger=ledger, budget=[Budget(calls=1), Budget(calls=2, scope="global")])
    config = {"run_id": "00000000-0000-0000-0000-000000000001"}
    assert [ask(model, dict(config)).text for _ in range(4)] == [HELPED, HELPED, ALONE, ALONE]
    assert len(model.delegate.attempts) == ledger.spent(EVERYTHING, now=0.0).calls == 2


# --- a ledger that is kept, and one that is away ------------------------------------------------


@every_way
def test_a_ledger_of_its_own_keeps_what_no_budget_counts(ask: Ask) -> None:
    ledger = MemoryLedger()
    ask(relay(ledger=ledger))
    assert ledger.spent(EVERYTHING, now=0.0) == Amount(6_000, 3, 1)
    (entry,) = ledger.entries()
    assert (entry.model, entry.state, entry.estimated) == ("scripted", "settled", False)


def test_what_one_answer_spent_is_forgotten_and_the_rest_kept() -> None:
    ledger = MemoryLedger()
    model = relay(ledger=ledger, budget=[Budget(calls=1), Budget(calls=9, scope="global")])
    invoke(model, {"run_id": "00000000-0000-0000-0000-000000000001"})
    (entry,) = ledger.entries()
    run = next(account for account in entry.accounts if account.scope == "run")
    assert run.key.startswith("00000000-0000-0000-0000-000000000001.")
    assert ledger.spent(run, now=0.0) == Amount()
    assert ledger.spent(EVERYTHING, now=0.0).calls == 1


def test_an_unknown_price_is_no_zero_in_the_history() -> None:
    ledger = MemoryLedger()
    invoke(relay(ledger=ledger, prices=None))
    (entry,) = ledger.entries()
    assert entry.estimated


class Away(MemoryLedger):
    """A ledger whose store can be switched off."""

    away = True

    def reserve(self, *args: Any, **facts: Any) -> Any:
        if self.away:
            raise errors.LedgerError("the store is away")
        return super().reserve(*args, **facts)

    def settle(self, *args: Any, **facts: Any) -> bool:
        return False if self.away else super().settle(*args, **facts)

    def spent(self, *args: Any, **facts: Any) -> Amount:
        if self.away:
            raise errors.LedgerError("the store is away")
        return super().spent(*args, **facts)


class Broken(MemoryLedger):
    """A ledger of somebody else's, with a mistake in it."""

    def reserve(self, *args: Any, **facts: Any) -> Any:
        raise KeyError("oops")


@every_way
@pytest.mark.parametrize("ledger", [Away, Broken])
@pytest.mark.parametrize("on_budget", ["continue", "raise", "stop"])
def test_a_ledger_that_is_away_refuses(ask: Ask, ledger: Any, on_budget: Any) -> None:
    hosted = ScriptedDelegate("blue ", usage=(12, 3))
    model = relay(
        delegate=hosted,
        ledger=ledger(),
        budget=Budget(calls=9, share=0.5, scope="global"),
        on_budget=on_budget,
        max_tokens=50,
    )
    message = ask(model)
    assert message.text == ALONE  # it breaks no answer
    (denied,) = relay_events(message, "relay.call.denied")
    assert denied["reason"] == "ledger"
    assert hosted.attempts == []


@every_way
def test_a_ledger_that_is_away_may_be_done_without(ask: Ask) -> None:
    model = relay(ledger=Away(), budget=Budget(calls=0, scope="global"), on_ledger_error="allow")
    message = ask(model)
    assert message.text == HELPED
    (finished,) = relay_events(message, "relay.call.finished")
    assert [charge["unbooked"] for charge in finished["charges"]] == [True]
    assert finished["cost_nanousd"] == 6_000


def test_a_store_that_comes_back_during_a_call_is_told_what_it_cost() -> None:
    ledger = Away()

    class ComesBack(ScriptedDelegate):
        def stream(self, attempt: Any) -> Any:
            ledger.away = False
            return super().stream(attempt)

    model = relay(
        delegate=ComesBack("blue ", usage=(12, 3)),
        ledger=ledger,
        budget=Budget(calls=9, scope="global"),
        on_ledger_error="allow",
    )
    message = invoke(model)
    assert not relay_report(message).charges[0].unbooked
    assert ledger.spent(EVERYTHING, now=0.0) == Amount(6_000, 3, 1)


def test_a_path_is_a_ledger(tmp_path: Any) -> None:
    where = tmp_path / "spending.db"
    for ledger in (where, str(where), f"sqlite:///{where}"):
        invoke(relay(ledger=ledger, budget=Budget(calls=9, scope="global")))
    from langchain_relay.ledgers import SQLiteLedger

    with SQLiteLedger(where) as kept:
        assert kept.spent(EVERYTHING, now=0.0).calls == 3


def test_an_allowance_is_taken_as_it_is() -> None:
    ledger = MemoryLedger()
    allowance = Allowance(Budget(calls=1, scope="team"), "blue")
    model = relay(ledger=ledger)
    assert [invoke(model, budget=allowance).text for _ in range(2)] == [HELPED, ALONE]
    assert ledger.spent(Account("team", "blue"), now=0.0).calls == 1


def test_ctrl_c_while_a_request_goes_out_gives_no_money_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(Pump[Any]):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            raise KeyboardInterrupt

    monkeypatch.setattr(wire, "Pump", Interrupted)
    ledger = MemoryLedger()
    with pytest.raises(KeyboardInterrupt):
        invoke(relay(ledger=ledger))
    assert ledger.spent(EVERYTHING, now=0.0) == Amount(16_000, 8, 1)
