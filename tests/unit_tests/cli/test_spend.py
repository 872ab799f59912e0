"""`langchain-relay spend` over a ledger in SQLite."""

from __future__ import annotations

import csv
import io
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from langchain_relay.cli import spend as spend_module
from langchain_relay.cli.app import app
from langchain_relay.engine.ledger import Account, Amount, Limit, Reservation
from langchain_relay.ledgers import SQLiteLedger

DAY = datetime(2026, 11, 20, 23, 30, tzinfo=UTC).timestamp()
ATTEMPTS = (  # seconds, model, whose, nano-dollars, tokens, estimated
    (0, "small", "a", 1_000, 3, False),
    (60, "large", "a", 20_000, 5, True),
    (3600, "small", "b", 300_000, 7, False),
)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    where = tmp_path / "spending.db"
    with SQLiteLedger(where) as kept:
        for number, (after_s, model, whose, cost, tokens, estimated) in enumerate(ATTEMPTS):
            accounts = (Account("global", "all"), Account("thread", whose), Account("_warned", "x"))
            now = DAY + after_s
            made = kept.reserve(
                [Limit(account) for account in accounts],
                Amount(10**6, 99, 1),
                key=str(number), model=model, now=now, expires_at=now + 60,
            )  # fmt: skip
            kept.settle(made, Amount(cost, tokens, 1), now=now, estimated=estimated)
    return where


def spend(*arguments: Any, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["spend", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def records(ledger: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(spend(ledger, "--format", "json", *arguments))
    return found


def test_a_table_by_day_and_model(ledger: Path) -> None:
    out = spend(ledger)
    assert [line.split()[1::2][:2] for line in out.splitlines() if "2026" in line] == [
        ["2026-11-20", "large"],
        ["2026-11-20", "small"],
        ["2026-11-21", "small"],
    ]
    assert "0.000321 USD" in out  # the sum
    assert "(0.00002 USD estimated)" in out


@pytest.mark.parametrize(
    ("arguments", "costs"),
    [
        (["--by", "model"], {("large",): 20_000, ("small",): 301_000}),
        (["--by", "day"], {("2026-11-20",): 21_000, ("2026-11-21",): 300_000}),
        (["--by", "day", "--timezone", "Europe/Berlin"], {("2026-11-21",): 321_000}),
        (["--by", "scope"], {("global",): 321_000, ("thread",): 321_000}),
        (
            ["--by", "key", "--scope", "thread"],
            {("thread:a",): 21_000, ("thread:b",): 300_000},
        ),
        (["--by", "model", "--key", "b"], {("small",): 300_000}),
        (["--by", "model", "--until", "2026-11-20"], {("large",): 20_000, ("small",): 1_000}),
        (["--by", "model", "--since", "2026-11-21"], {("small",): 300_000}),
        (["--by", "model", "--since", "2027-01-01"], {}),
    ],
)
def test_totals(ledger: Path, arguments: list[str], costs: dict[tuple[str, ...], int]) -> None:
    by = arguments[1]
    found = {(record[by],): record["cost_nanousd"] for record in records(ledger, *arguments)}
    assert found == costs


def test_csv_and_json_say_the_same(ledger: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(spend(ledger, "--format", "csv"))))
    texts = [{name: str(value) for name, value in one.items()} for one in records(ledger)]
    assert rows == texts
    assert rows[0] == {
        "day": "2026-11-20", "model": "large", "attempts": "1", "calls": "1", "output_tokens": "5",
        "cost_nanousd": "20000", "estimated_nanousd": "20000", "cost_usd": "0.00002",
    }  # fmt: skip


def test_a_plot(ledger: Path, tmp_path: Path) -> None:
    spend(ledger, "--plot", tmp_path / "spending.png")
    assert (tmp_path / "spending.png").read_bytes().startswith(b"\x89PNG")
    said = spend(ledger, "--plot", tmp_path / "nowhere" / "spending.png", code=1)
    assert "nowhere" in said


def test_nothing_spent(tmp_path: Path) -> None:
    with SQLiteLedger(tmp_path / "empty.db") as kept:
        assert kept.spent(Account("global", "all"), now=0.0) == Amount()
    assert "nothing was spent" in spend(tmp_path / "empty.db")
    spend(tmp_path / "empty.db", "--plot", tmp_path / "empty.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.db"], "no ledger at"),
        (["memory"], "in memory"),
        (["mysql://x"], "mysql"),
    ],
)
def test_a_ledger_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in spend(*arguments, code=1)
    assert not list(tmp_path.iterdir())  # and none was made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday"], "'yesterday'"),
        (["--until", "9999-12-31"], "beyond the calendar"),
        (["--timezone", "Mars/X"], "Mars/X"),
        (["--timezone", "Europe"], "no such IANA time zone"),  # a folder of the time zones
    ],
)
def test_a_mistake_is_named(ledger: Path, arguments: list[str], said: str) -> None:
    assert said in spend(ledger, *arguments, code=1)


def test_watch_shows_what_comes(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look finds what was spent after the first."""
    looks, threads = 0, threading.active_count()

    def spend_more(seconds: float) -> None:
        nonlocal looks
        looks += 1
        assert seconds == 0.5
        if looks > 1:
            raise KeyboardInterrupt
        with SQLiteLedger(ledger) as kept:
            made = kept.reserve(
                [Limit(Account("thread", "c"))], Amount(5, 5, 1),
                key="late", model="late", now=DAY, expires_at=DAY + 60,
            )  # fmt: skip
            kept.settle(made, Amount(4_000_000_000, 5, 1), now=DAY)

    monkeypatch.setattr("langchain_relay.cli.spend.time.sleep", spend_more)
    out = spend(ledger, "--watch", "0.5")
    assert looks == 2
    assert "thread:c" in out
    assert "4 USD" in out
    assert threading.active_count() <= threads + 8


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "$x^_{", r"$\frac$", "_hidden", "=1+1"])
def test_names_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    where = tmp_path / "spending.db"
    with SQLiteLedger(where) as kept:
        made = Reservation("k", (Account("user", name),), Amount(), DAY, name, DAY)
        kept.settle(made, Amount(7, 1, 1), now=DAY)
        frame = io.StringIO()
        shown = Console(file=frame, width=200)
        shown.print(spend_module._frame(spend_module.Question(str(where), by=("key",)), kept))
    assert f"user:{name}" in spend(where, "--by", "key", "--plot", tmp_path / "spent.png")
    assert frame.getvalue().count(f"user:{name}") == 2  # a total, and the latest


def test_a_time_beyond_the_calendar_stops_no_view(tmp_path: Path) -> None:
    """Milliseconds where seconds belong, for example."""
    where = tmp_path / "spending.db"
    with SQLiteLedger(where) as kept:
        made = Reservation("k", (Account("user", "ada"),), Amount(), 1e18, "m", 1e18)
        kept.settle(made, Amount(7, 1, 1), now=DAY)
        frame = io.StringIO()
        Console(file=frame, width=200).print(
            spend_module._frame(spend_module.Question(str(where)), kept)
        )
    assert "user:ada" in frame.getvalue()
    assert "beyond the calendar" in spend(where)


@pytest.mark.parametrize("key", ["a", "thread:a"])
def test_a_key_may_be_named_as_the_table_shows_it(ledger: Path, key: str) -> None:
    (found,) = records(ledger, "--by", "key", "--scope", "thread", "--key", key)
    assert (found["key"], found["attempts"]) == ("thread:a", 2)


def test_days_in_the_wrong_order_are_a_mistake(ledger: Path) -> None:
    assert "behind --until" in spend(
        ledger, "--since", "2026-11-22", "--until", "2026-11-20", code=1
    )
    assert "large" in spend(ledger, "--since", "2026-11-20", "--until", "2026-11-20")


def test_the_help_teaches() -> None:
    done = CliRunner().invoke(app, ["spend", "--help"], env={"COLUMNS": "200"})
    for said in ("--watch", "--plot", "redis://", "Try:"):
        assert said in done.output
