"""What `RelayChatModel` takes as a price, what it does without one, and what local work costs."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from langchain_relay import Budget, RelayChatModel, errors, get_cost_callback, relay_report
from langchain_relay.delegates.local import LocalDelegate
from langchain_relay.engine.drivers import LocalWork
from langchain_relay.engine.ledger import Account, Amount, MemoryLedger
from langchain_relay.engine.values import Step
from langchain_relay.prices import UnknownPriceWarning
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>8</call>", "so.")
HELPED, ALONE = "It is blue so.", "It is so."
EVERYTHING = Account("global", "all")


class Elsewhere(ScriptedDelegate):
    """A delegate that says where it asks, whom, and for which service."""

    def __init__(self, model: str = "scripted", **told: Any) -> None:
        super().__init__("blue ", usage=(1_000, 100), model=model)
        self.provider = told.pop("provider", None)
        self._told = told

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint, **self._told}


def relay(**fields: Any) -> RelayChatModel:
    return RelayChatModel(
        **{
            "model": ScriptedLocal(*PIECES),
            "delegate": ScriptedDelegate("blue ", usage=(12, 3)),
            "ledger": MemoryLedger(),
            **fields,
        }
    )


def invoke(model: RelayChatModel, **kwargs: Any) -> AIMessage:
    return model.invoke("Why?", **kwargs)


def ainvoke(model: RelayChatModel, **kwargs: Any) -> AIMessage:
    return asyncio.run(model.ainvoke("Why?", **kwargs))


both = pytest.mark.parametrize("ask", [invoke, ainvoke])


def cost_of(message: AIMessage) -> tuple[int | None, str | None]:
    (charge,) = relay_report(message).charges
    return charge.cost_nanousd, charge.price_source


# --- prices -------------------------------------------------------------------------------------


def test_a_price_may_be_a_pair_a_table_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('as_of = 2026-11-01\n[[price]]\nmodel = "scripted"\ninput = 1\noutput = 2\n')
    for prices in ({"scripted": (1, 2)}, {"scripted": {"input": 1, "output": 2}}, file, str(file)):
        cost_nanousd, source = cost_of(invoke(relay(prices=prices)))
        assert cost_nanousd == 12 * 1_000 + 3 * 2_000
        in_file = prices in (file, str(file))
        assert source == ("user (prices.toml), as of 2026-11-01" if in_file else "user")


@pytest.mark.parametrize("prices", [[1], 7, "no-such-file.toml", {"scripted": (1e-9, 1)}])
def test_what_is_no_price_is_refused(prices: Any) -> None:
    with pytest.raises(errors.UsageMistake, match="price"):
        relay(prices=prices)


def test_a_price_for_one_provider_is_that_providers() -> None:
    prices = {"scripted": {"input": 1, "output": 2, "provider": "groq"}}
    assert (
        cost_of(invoke(relay(prices=prices, delegate=Elsewhere(provider="groq"))))[0] == 1_200_000
    )
    assert cost_of(invoke(relay(prices=prices, delegate=Elsewhere(provider="openai"))))[0] is None


def test_the_table_is_asked_for_the_provider() -> None:
    """Two providers sell models of one name at two prices."""
    costs = {
        cost_of(invoke(relay(delegate=Elsewhere("llama-3.3-70b-versatile", provider=provider))))
        for provider in ("groq", "openai")
    }
    assert [cost for cost, _ in costs if cost is not None] == [590 * 1_000 + 790 * 100]
    assert (None, None) in costs


@pytest.mark.parametrize(
    ("told", "nanousd"),
    [
        ({}, 450_000),
        ({"settings": {"service_tier": "flex"}}, 225_000),
        ({"settings": {"extra_body": {"service_tier": "priority"}}}, 810_000),
        (
            {"settings": {"service_tier": "flex", "extra_body": {"service_tier": "priority"}}},
            810_000,
        ),
        ({"extra_body": {"service_tier": "flex"}}, 225_000),
        ({"settings": {"model_kwargs": {"service_tier": "flex"}}}, 225_000),
        ({"settings": {"service_tier": "auto", "extra_body": None}}, 450_000),
    ],
)
def test_a_service_tier_has_its_price(told: dict[str, Any], nanousd: int) -> None:
    delegate = Elsewhere("gpt-5-mini", provider="openai", **told)
    assert cost_of(invoke(relay(delegate=delegate)))[0] == nanousd


def test_a_delegate_in_this_process_is_free_unless_the_user_says_so(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[[price]]\nmodel = "scripted-local"\ninput = 1\noutput = 2\n')
    for prices, priced in ((None, False), (file, True), ({"scripted-local": (1, 2)}, True)):
        delegate = LocalDelegate(ScriptedLocal("blue "))
        cost_nanousd, source = cost_of(invoke(relay(delegate=delegate, prices=prices)))
        assert bool(cost_nanousd) is priced
        assert (source == "local") is not priced


# --- where nobody knows one ---------------------------------------------------------------------


def test_an_unknown_price_under_a_budget_in_usd_is_an_error() -> None:
    with pytest.raises(errors.PriceUnknown, match="tokens= or calls= instead.*on_unknown_price"):
        relay(budget=Budget(usd=1))
    relay(budget=Budget(calls=1))
    relay()


@both
def test_an_unknown_price_may_be_warned_of_once_and_hand_overs_go_on(ask: Any) -> None:
    ledger = MemoryLedger()
    said = r"'scripted'.*cannot count it.*booked as 0"
    with pytest.warns(UnknownPriceWarning, match=said) as told:
        model = relay(ledger=ledger, budget=Budget(usd=0), on_unknown_price="warn")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownPriceWarning)
        messages = [ask(model, budget=Budget(usd=0)) for _ in range(2)]
    assert [message.text for message in messages] == [HELPED] * 2
    assert cost_of(messages[0]) == (None, None)
    assert relay_report(messages[0]).cost_nanousd is None
    assert ledger.spent(EVERYTHING, now=0.0) == Amount(0, 6, 2)
    assert [entry.estimated for entry in ledger.entries()] == [True, True]


def test_other_limits_hold_beside_a_price_nobody_knows() -> None:
    with pytest.warns(UnknownPriceWarning):
        model = relay(budget=Budget(usd=1, calls=1, scope="global"), on_unknown_price="warn")
    assert [invoke(model).text for _ in range(2)] == [HELPED, ALONE]


@both
def test_an_unknown_price_may_be_taken_for_zero(ask: Any) -> None:
    ledger = MemoryLedger()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownPriceWarning)
        message = ask(relay(ledger=ledger, budget=Budget(usd=0), on_unknown_price="zero"))
    assert message.text == HELPED
    assert cost_of(message) == (0, "assumed zero")
    assert [entry.estimated for entry in ledger.entries()] == [False]


@pytest.mark.parametrize("on_unknown_price", ["warn", "zero"])
def test_a_price_that_is_known_holds_whatever_becomes_of_others(on_unknown_price: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownPriceWarning)
        model = relay(
            prices={"scripted": (0, 2)}, budget=Budget(usd=0), on_unknown_price=on_unknown_price
        )
    assert invoke(model).text == ALONE


# --- local work ---------------------------------------------------------------------------------

STEP_S = 0.02
DELAY_S = 0.15
HOSTED_S = 2 * DELAY_S  # a word and the end


class SlowLocal(ScriptedLocal):
    """Each step takes a while, as of a model that decodes."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        opened: Any = super().open(*args, **kwargs)
        session = opened.result()
        decode = session.decode

        def slowly(asked: Any) -> Future[Step]:
            step: Future[Step] = Future()
            threading.Timer(STEP_S, step.set_result, (decode(asked).result(),)).start()
            return step

        session.decode = slowly
        return opened


@both
def test_local_work_is_priced_by_the_hour_without_hosted_waits(ask: Any) -> None:
    model = relay(
        model=SlowLocal(*PIECES),
        delegate=ScriptedDelegate("blue ", usage=(12, 3), delay_s=DELAY_S),
        prices={"scripted": (0, 2)},
        local_usd_per_hour="3.6",
    )
    began_s = time.monotonic()
    with get_cost_callback({"scripted": (0, 2)}) as costs:
        message = ask(model)
    took_s = time.monotonic() - began_s
    report = relay_report(message)
    assert report.local_ms is not None
    assert 2 * STEP_S * 1000 <= report.local_ms <= (took_s - HOSTED_S) * 1000
    assert report.local_cost_nanousd == report.local_ms * 1_000  # 3.6 an hour is 1e-6 a ms
    assert report.cost_nanousd == 6_000
    assert report.total_cost_nanousd == 6_000 + report.local_cost_nanousd
    assert costs.models["scripted-local"].cost_nanousd == report.local_cost_nanousd
    assert costs.cost_nanousd == report.total_cost_nanousd


def test_without_a_price_local_work_is_not_timed() -> None:
    report = relay_report(invoke(relay()))
    assert (report.local_ms, report.local_cost_nanousd) == (None, None)
    free = relay_report(invoke(relay(local_usd_per_hour=0)))
    assert free.local_cost_nanousd == 0
    assert free.local_ms is not None


def test_a_streams_chunks_add_up_to_the_same_keys() -> None:
    chunks = list(relay(model=SlowLocal(*PIECES), local_usd_per_hour=1).stream("Why?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    local_ms = relay_report(whole).local_ms
    assert isinstance(local_ms, int)
    assert local_ms >= 2 * STEP_S * 1000


def test_waits_are_added_up_and_rounded_up() -> None:
    work = LocalWork(clock=iter([1.0, 1.5, 7.0, 7.0001]).__next__)
    with work:
        pass
    assert work.waited_ms == 500
    with work:
        pass
    assert work.waited_ms == 501


@pytest.mark.parametrize("usd", [-1, "a lot", float("nan"), True])
def test_a_local_price_that_is_none_is_refused(usd: Any) -> None:
    with pytest.raises(errors.UsageMistake, match="local_usd_per_hour="):
        relay(local_usd_per_hour=usd)


# --- what tells relays apart --------------------------------------------------------------------


def test_what_changes_no_answer_makes_no_other_relay() -> None:
    plain, other = relay(), relay(local_usd_per_hour=1, on_unknown_price="zero")
    assert plain._identifying_params == {
        **other._identifying_params,
        "delegate": plain._identifying_params["delegate"],
    }
    assert "on_unknown_price" not in plain._identifying_params
