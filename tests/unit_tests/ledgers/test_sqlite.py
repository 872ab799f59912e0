"""The file: who may open it, what becomes of older and newer ones, what it says when it cannot."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from langchain_relay.engine.ledger import Account, Amount, Entry, Limit, Reservation
from langchain_relay.errors import LedgerError, UsageMistake
from langchain_relay.ledgers import SQLiteLedger
from langchain_relay.ledgers.sqlite import APPLICATION_ID, MIGRATIONS, SCHEMA

ALL = Account("global", "", "2026-11-21")


def reserve(ledger: SQLiteLedger, key: str = "a", **limits: Any):
    return ledger.reserve([Limit(ALL, **limits)], Amount(5, 1, 1), key=key, now=1, expires_at=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spent.db"


def test_a_second_ledger_sees_what_the_first_booked(path):
    first, second = SQLiteLedger(path), SQLiteLedger(str(path))
    first.settle(reserve(first), Amount(4, 1, 1), now=2)
    assert second.spent(ALL, now=2) == Amount(4, 1, 1)
    first.disconnect()
    assert first.spent(ALL, now=2) == Amount(4, 1, 1)


def test_a_file_of_version_1_is_brought_up_and_keeps_what_it_has(path):
    with sqlite3.connect(path) as db:
        db.executescript(MIGRATIONS[0])
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute(
            "INSERT INTO accounts VALUES (7, 'global', '', '2026-11-21', 0, 3, 1, 1, 13, 3, 2)"
        )
        db.execute("INSERT INTO attempts VALUES (1, 'done', 'm', 1, 9, 'settled', 0, 5,1,1, 3,1,1)")
        db.execute("INSERT INTO attempts VALUES (2, 'open', 'm', 2, 9, 'open', 0, 10,2,1, 10,2,1)")
        db.executemany("INSERT INTO holds VALUES (?, 7, 0)", [(1,), (2,)])
    db.close()

    with SQLiteLedger(path) as ledger:
        assert ledger.spent(ALL, now=3) == Amount(3, 1, 1)
        assert ledger.booked(ALL, now=3) == Amount(13, 3, 2)
        assert [e.key for e in ledger.entries()] == ["done", "open"]
        assert ledger.spent(ALL, now=9) == Amount(13, 3, 2)
        made = reserve(ledger, "open")
        ledger.settle(made, Amount(1, 1, 1), now=10)
        assert ledger.spent(ALL, now=10) == Amount(4, 2, 2)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    db.close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path):
    SQLiteLedger(path).spent(ALL, now=0)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    ledger = SQLiteLedger(path)
    with pytest.raises(UsageMistake, match=r"schema 99, .* knows up to 2: upgrade"):
        reserve(ledger)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
    db.close()


def test_the_database_of_another_program_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url)")
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(UsageMistake, match="another program"):
        reserve(SQLiteLedger(path))
    with sqlite3.connect(path) as db:
        tables = db.execute("SELECT name FROM sqlite_master").fetchall()
    db.close()
    assert tables == [("bookmarks",)]


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    SQLiteLedger(path).spent(ALL, now=0)
    broken = (*MIGRATIONS, "CREATE TABLE more (x);\nCREATE TABLE more (x);\n")
    monkeypatch.setattr("langchain_relay.ledgers.sqlite.MIGRATIONS", broken)
    monkeypatch.setattr("langchain_relay.ledgers.sqlite.SCHEMA", 3)
    with pytest.raises(LedgerError, match="more already exists"):
        reserve(SQLiteLedger(path))
    monkeypatch.undo()
    assert reserve(SQLiteLedger(path)).key == "a"


def test_a_file_that_is_no_database(path):
    path.write_bytes(b"spent: nothing\n" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        reserve(SQLiteLedger(path))


def test_a_file_that_somebody_holds_is_refused_and_booked_later(path):
    ledger = SQLiteLedger(path, timeout_s=0.05)
    made = reserve(ledger)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="locked"):
        reserve(ledger, "b")
    assert not ledger.settle(made, Amount(4, 1, 1), now=2)
    assert ledger.waiting == 1
    other.execute("ROLLBACK")
    assert ledger.spent(ALL, now=2) == Amount(4, 1, 1)
    assert ledger.waiting == 0
    other.close()


def test_an_end_that_finds_a_newer_version_is_kept(path):
    """Whoever upgrades the file in the middle of an answer breaks no answer."""
    ledger = SQLiteLedger(path)
    made = reserve(ledger)
    ledger.disconnect()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    assert not ledger.settle(made, Amount(4, 1, 1), now=2)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA}")
    db.close()
    assert ledger.spent(ALL, now=2) == Amount(4, 1, 1)


@pytest.mark.parametrize("name", ["", ":memory:"])
def test_a_ledger_in_memory_is_another_one(name):
    with pytest.raises(UsageMistake, match='ledger="memory"'):
        SQLiteLedger(name)


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(UsageMistake, match="does not exist"):
        SQLiteLedger(tmp_path / "nowhere" / "spent.db")
    with pytest.raises(UsageMistake, match="is a folder"):
        SQLiteLedger(tmp_path)


def test_constructing_makes_no_file(path):
    SQLiteLedger(path)
    assert not path.exists()


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
def test_text_that_no_store_keeps_is_refused_before_anything_is_spent(path, text):
    ledger = SQLiteLedger(path)
    for account, key in ((ALL, text), (Account(text, "k"), "key"), (Account("s", text), "key")):
        with pytest.raises(UsageMistake, match="NUL"):
            ledger.reserve([Limit(account)], Amount(1), key=key, now=0, expires_at=9)
        with pytest.raises(UsageMistake, match="NUL"):
            ledger.settle(Reservation(key, (account,), Amount(1), 9), Amount(1), now=0)
    assert ledger.waiting == 0


async def test_a_cancelled_reserve_sets_nothing_aside(path, monkeypatch):
    import asyncio
    import threading

    ledger, reached, go = SQLiteLedger(path), threading.Event(), threading.Event()
    reserve_now = SQLiteLedger._reserve

    def slow(self, limits, asked):
        made = reserve_now(self, limits, asked)
        reached.set()
        assert go.wait(10)
        return made

    monkeypatch.setattr(SQLiteLedger, "_reserve", slow)
    task = asyncio.create_task(
        ledger.areserve([Limit(ALL)], Amount(5, 1, 1), key="a", now=0, expires_at=9)
    )
    await asyncio.to_thread(reached.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(1000):
        if (await asyncio.to_thread(ledger.booked, ALL, now=1)) == Amount():
            break
        await asyncio.sleep(0.005)
    assert list(ledger.entries()) == [Entry("a", (ALL,), "", 0, Amount(), "released", False)]


def test_a_durable_ledger_syncs_reservations_and_a_normal_one_nothing(path):
    durable, normal = SQLiteLedger(path), SQLiteLedger(path, synchronous="normal")
    for ledger, expected in ((durable, 2), (normal, 1)):
        reserve(ledger, f"{expected}")
        db = ledger._connection
        assert db is not None
        assert db.execute("PRAGMA synchronous").fetchone() == (expected,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
