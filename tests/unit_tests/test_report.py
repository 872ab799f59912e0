"""What a report says of money: where prices come from, how old they are, what local work costs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from langchain_relay import Budget, RelayChatModel, RelayReport, errors, relay_report
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal


def answer(**fields: Any) -> AIMessage:
    settings: dict[str, Any] = {
        "model": ScriptedLocal("It is ", "<call>8</call>", "so."),
        "delegate": ScriptedDelegate("blue ", usage=(12, 3)),
        **fields,
    }
    return RelayChatModel(**settings).invoke("?")


def with_local_cost(message: AIMessage, **scalars: int) -> RelayReport:
    """As `RelayChatModel` writes it where local work has a price."""
    message.response_metadata["relay"] |= scalars
    return relay_report(message)


def test_the_report_says_where_a_price_comes_from_and_how_old_it_is():
    today = datetime.now().astimezone().date()
    day = today - timedelta(days=3)
    table = {"input": 1, "output": 2, "as_of": day}
    report = str(relay_report(answer(prices={"scripted": table})))
    midnights = (datetime.now().astimezone().date() - today).days
    ages = [f"({age} days old)\n" for age in {3, 3 + midnights}]
    assert any(f"price from: user, as of {day} {age}" in report for age in ages)
    assert "cost: 0.000018 USD\n" in report


def test_local_work_stands_in_the_report_where_it_has_a_price():
    report = with_local_cost(
        answer(prices={"scripted": (1, 2)}), local_ms=1_500, local_cost_nanousd=150_000
    )
    assert report.total_cost_nanousd == 18_000 + 150_000
    assert "\ncost: 0.000018 USD\nlocal cost: 0.00015 USD for 1.5 s\nboth: 0.000168 USD\n" in str(
        report
    )


def test_local_work_without_a_price_is_not_mentioned():
    report = relay_report(answer(prices={"scripted": (1, 2)}))
    assert (report.local_cost_nanousd, report.total_cost_nanousd) == (None, 18_000)
    assert "local cost" not in str(report)


def test_an_unknown_hosted_price_leaves_the_total_unknown():
    report = with_local_cost(answer(), local_ms=1, local_cost_nanousd=1)
    assert report.total_cost_nanousd is None
    assert "both: unknown" in str(report)


def test_an_answer_from_langchains_cache_costs_no_local_work():
    message = answer(prices={"scripted": (1, 2)})
    message.usage_metadata = {**(message.usage_metadata or {}), "total_cost": 0}  # type: ignore[assignment]
    report = with_local_cost(message, local_ms=5, local_cost_nanousd=7)
    assert report.total_cost_nanousd == 0


def test_a_report_says_why_hand_overs_failed_or_were_denied():
    failed = answer(delegate=FailingDelegate(ConnectionError("no [route]"), times=9), max_retries=0)
    assert "\nwhy: failed: ConnectionError: no [route]\n" in str(relay_report(failed))
    denied = answer(budget=Budget(calls=0, scope="global", window="day"))
    assert "\nwhy: denied: 1 call needed, 0 calls of 0 calls left for everybody in the day " in str(
        relay_report(denied)
    )
    malformed = answer(model=ScriptedLocal("a ", "<call>x</call>", "b"))
    assert relay_report(malformed).reasons == ("denied: malformed",)
    assert relay_report(answer()).reasons == ()


@pytest.mark.parametrize("thing", ["text", {"messages": []}, None])
def test_what_is_no_message_is_refused_by_its_type(thing: Any):
    with pytest.raises(errors.UsageMistake, match=type(thing).__name__):
        relay_report(thing)
