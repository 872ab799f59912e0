from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay import Budget, errors
from langchain_relay.budget import Window
from langchain_relay.engine.ledger import Account

AUTUMN = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # 02:30 in Berlin, which has it twice
LENGTHS: dict[Window, timedelta] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=31),
}
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
moments = st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def windowed(window: Window, zone: str = "UTC") -> Budget:
    return Budget(calls=1, scope="global", window=window, timezone=zone)


@pytest.mark.parametrize(
    ("window", "begin"),
    [
        ("minute", "2026-10-25T02:30+02:00"),
        ("hour", "2026-10-25T02:00+02:00"),
        ("day", "2026-10-25T00:00+02:00"),
        ("week", "2026-10-19T00:00+02:00"),
        ("month", "2026-10-01T00:00+02:00"),
    ],
)
def test_a_window_begins_on_the_clock_of_its_time_zone(window: Window, begin: str) -> None:
    name = windowed(window, "Europe/Berlin").window_of(AUTUMN.timestamp())
    assert name == f"{window} {begin}"


def test_an_hour_that_comes_twice_is_two_windows() -> None:
    budget = windowed("hour", "Europe/Berlin")
    hours = [budget.window_of(AUTUMN.timestamp() + i * 3600) for i in range(3)]
    assert hours == [f"hour 2026-10-25T0{h}" for h in ("2:00+02:00", "2:00+01:00", "3:00+01:00")]


@given(moments, st.sampled_from(sorted(LENGTHS)), st.sampled_from(ZONES))
def test_every_moment_lies_in_the_window_that_is_named(
    moment: datetime, window: Window, zone: str
) -> None:
    budget = windowed(window, zone)
    name = budget.window_of(moment.timestamp())
    assert name is not None
    begin = datetime.fromisoformat(name.partition(" ")[2])
    slack = timedelta(hours=1)  # a change of the clocks within the window
    assert begin <= moment < begin + LENGTHS[window] + slack
    assert budget.window_of(max(begin, moment - slack / 60).timestamp()) is not None
    local = begin.astimezone(ZoneInfo(zone))
    assert window in {"minute", "hour"} or (local.hour, local.minute) in {(0, 0), (1, 0), (0, 30)}


@given(moments, st.sampled_from(sorted(LENGTHS)), st.sampled_from(ZONES))
def test_windows_follow_one_another(moment: datetime, window: Window, zone: str) -> None:
    budget = windowed(window, zone)
    names = [budget.window_of((moment + i * LENGTHS[window] / 4).timestamp()) for i in range(12)]
    seen = list(dict.fromkeys(names))
    assert names == sorted(names, key=seen.index)  # none comes back
    assert 2 <= len(seen) <= 5


@pytest.mark.parametrize(
    ("scope", "config", "key"),
    [
        ("run", {}, "the run"),
        ("global", {}, "all"),
        ("thread", {"configurable": {"thread_id": 7}}, "7"),
        ("thread", {"metadata": {"thread_id": "t"}}, "t"),
        ("user", {"configurable": {"user_id": "u"}}, "u"),
        ("user", {"metadata": {"user": "v"}}, "v"),
        ("project", {"metadata": {"project": "p"}, "configurable": {"project": "q"}}, "q"),
        ("zero", {"configurable": {"zero": 0}}, "0"),
    ],
)
def test_whose_budget_it_is(scope: str, config: dict[str, Any], key: str) -> None:
    allowance = Budget(calls=1, scope=scope).allowance("the run", config)
    assert allowance.account(0.0) == Account(scope, key, None)


@pytest.mark.parametrize(
    ("scope", "config", "named"),
    [
        ("thread", {}, "thread_id"),
        ("thread", {"configurable": {"thread_id": None}}, "thread_id"),
        ("user", {"configurable": {"user_id": ""}}, "user_id"),
        ("project", {"metadata": {"projekt": "p"}}, "project"),
    ],
)
def test_a_missing_key_is_named(scope: str, config: dict[str, Any], named: str) -> None:
    with pytest.raises(errors.UsageMistake, match=f"scope='{scope}'.*'{named}'.*configurable"):
        Budget(calls=1, scope=scope).allowance("the run", config)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (object(), "address in memory"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogates"),
        ("é" * 501, "1002 bytes"),
    ],
)
def test_a_key_that_nobody_finds_again_is_refused(key: object, said: str) -> None:
    with pytest.raises(errors.UsageMistake, match=f"scope='user'.*'user_id'.*{said}"):
        Budget(calls=1, scope="user").allowance("the run", {"configurable": {"user_id": key}})


@pytest.mark.parametrize(
    "mistake",
    [
        {"window": "fortnight", "scope": "global"},
        {"window": "day"},
        {"timezone": "Mars/Olympus"},
        {"timezone": ""},
        {"timezone": None},
        {"timezone": ["UTC"]},
        {"timezone": "Europe"},  # a folder of the time zones
        {"usd": "1e9999999999"},
        {"usd": "1e-9999999999"},
        {"usd": "-1"},
        {"usd": "Infinity"},
        {"usd": True},
        {"scope": ""},
        {"scope": "_warned"},
        {"scope": None},
        {"share": -0.1},
        {"share": 1.01},
        {"share": True},
        {"warn_at": 0},
        {"warn_at": "0.8"},
    ],
)
def test_a_budget_that_makes_no_sense_is_named(mistake: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageMistake, match=rf"Budget\({next(iter(mistake))}"):
        Budget(**{"calls": 1, **mistake})


def test_zero_is_a_limit() -> None:
    for limit in ({"usd": 0}, {"calls": 0}, {"tokens": 0}, {"share": 0}):
        Budget(**limit)  # type: ignore[arg-type]
