"""`ledger_from`, totals, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from langchain_relay import ledgers
from langchain_relay.engine.ledger import Account, Amount, Entry, MemoryLedger
from langchain_relay.errors import MissingExtra, UsageMistake
from langchain_relay.ledgers import (
    PostgresLedger,
    RedisLedger,
    SQLiteLedger,
    Total,
    ledger_from,
    totals,
)


def test_a_path_is_sqlite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "spent.db"
    for where in (file, str(file), "spent.db", "sqlite:///spent.db", f"sqlite:///{file}"):
        ledger = ledger_from(where)
        assert isinstance(ledger, SQLiteLedger)
        ledger.spent(Account("a", "b"), now=0)
        assert file.exists()
        ledger.disconnect()
        file.unlink()


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("memory", MemoryLedger),
        ("redis://localhost:6379/0", RedisLedger),
        ("rediss://user:pw@localhost/1", RedisLedger),
        ("unix:///tmp/redis.sock", RedisLedger),
        ("postgresql://user:pw@localhost/db", PostgresLedger),
        ("postgres://localhost/db", PostgresLedger),
    ],
)
def test_other_ledgers_by_their_scheme_without_connecting(where, kind):
    assert isinstance(ledger_from(where), kind)


def test_a_ledger_is_itself():
    ledger = MemoryLedger()
    assert ledger_from(ledger) is ledger


def test_a_scheme_nobody_knows_is_named_with_those_there_are():
    with pytest.raises(UsageMistake, match=r"no ledger for mysql://; use a path"):
        ledger_from("mysql://localhost/db")


def test_names_of_schemas_and_prefixes():
    with pytest.raises(UsageMistake, match="no name for a schema"):
        PostgresLedger("postgresql://localhost", schema='a"; drop')
    with pytest.raises(UsageMistake, match="connection string"):
        PostgresLedger("postgresql://localhost/db?colour=red")
    with pytest.raises(UsageMistake, match="braces"):
        RedisLedger("redis://localhost", prefix="{a}")
    with pytest.raises(UsageMistake, match="URL"):
        RedisLedger("http://localhost")
    for days in (0, 0.5):  # its script cannot be stopped half way
        with pytest.raises(UsageMistake, match="history_days"):
            RedisLedger("redis://localhost", history_days=days)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ledgers.__all__)
def test_each_name_can_be_imported(name):
    assert getattr(ledgers, name).__name__ == name


def test_all_is_sorted_and_others_are_attribute_errors():
    assert ledgers.__all__ == sorted(ledgers.__all__)
    with pytest.raises(AttributeError, match="MySQLLedger"):
        ledgers.MySQLLedger  # noqa: B018


def test_naming_one_loads_no_client_of_the_others():
    code = (
        "import sys\nfrom langchain_relay.ledgers import SQLiteLedger, MemoryLedger, ledger_from\n"
        "print(*({'redis', 'psycopg'} & set(sys.modules)), 'none')"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "none", done.stderr


@pytest.mark.parametrize(
    ("client", "extra", "name"),
    [("redis", "redis", "RedisLedger"), ("psycopg", "postgres", "PostgresLedger")],
)
def test_a_missing_client_says_what_to_install(client, extra, name, monkeypatch):
    monkeypatch.setitem(sys.modules, client, None)
    monkeypatch.delitem(sys.modules, f"langchain_relay.ledgers.{extra}", raising=False)
    monkeypatch.delitem(ledgers.__dict__, name, raising=False)
    with pytest.raises(MissingExtra, match=rf"langchain-relay\[{extra}\]"):
        ledger_from(f"{extra.removesuffix('ql')}://localhost/0")


# --- totals ---------------------------------------------------------------------------------------

ANN, RUN = Account("user", "ann", "2026-11-21"), Account("run", "r1")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def entry(key: str, nanousd: int, **facts) -> Entry:
    base = {
        "accounts": (ANN,),
        "model": "big",
        "at": NOON,
        "amount": Amount(nanousd, 1, 1),
        "state": "settled",
        "estimated": False,
    }
    return Entry(key, **{**base, **facts})


def test_totals_by_day_and_model_in_the_zone_that_is_asked_for():
    entries = [
        entry("a", 5),
        entry("b", 7, at=NOON + 11.5 * 3600),
        entry("c", 9, model="small"),
        entry("d", 2, at=NOON + 86_400),
    ]
    found = totals(iter(entries), ["day", "model"])
    assert {group: total.amount.cost_nanousd for group, total in found.items()} == {
        ("2026-11-21", "big"): 12,
        ("2026-11-21", "small"): 9,
        ("2026-11-22", "big"): 2,
    }
    assert list(found) == sorted(found)
    tokyo = totals(entries, ["day"], zone=timezone(timedelta(hours=9)))
    assert {day: total.attempts for (day,), total in tokyo.items()} == {
        "2026-11-21": 2,
        "2026-11-22": 2,
    }


def test_a_time_beyond_the_calendar_hides_no_spending():
    late = Entry("k", (Account("user", "u"),), "m", 1e18, Amount(5, 1, 1), "settled", False)
    assert totals([late], ["day"])["beyond the calendar",].amount == Amount(5, 1, 1)
    assert totals([late], ["model"])["m",].amount == Amount(5, 1, 1)


def test_totals_keep_apart_what_nobody_reported():
    entries = [
        entry("a", 5),
        entry("b", 7, estimated=True),
        entry("c", 11, state="open"),
        entry("d", 0, state="released", amount=Amount()),
    ]
    assert totals(entries, []) == {(): Total(Amount(23, 3, 3), Amount(18, 2, 2), 4)}


def test_an_attempt_counts_once_in_each_of_its_scopes_and_keys():
    month = Account("user", "ann", "2026-11")
    entries = [entry("a", 5, accounts=(ANN, RUN, month)), entry("b", 1, accounts=())]
    by_scope = totals(entries, ["scope"])
    assert {s: t.amount.cost_nanousd for (s,), t in by_scope.items()} == {
        "": 1,
        "run": 5,
        "user": 5,
    }
    assert list(totals(entries, ["scope", "key"])) == [
        ("", ":"),
        ("run", "run:r1"),
        ("user", "user:ann"),
    ]


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://ann:sesame@localhost:6380/0", "redis://localhost:6380"),
        ("redis://localhost", "redis://localhost"),
        ("unix://ann:sesame@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_errors_of_redis_name_the_place_and_no_password(url: str, named: str):
    assert RedisLedger(url)._where == named
