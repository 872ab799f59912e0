"""A server that is killed and started again in the middle of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from langchain_relay.engine.errors import BudgetExceeded, LedgerError
from langchain_relay.engine.ledger import Account, Amount, Ledger, Limit, Reservation
from langchain_relay.ledgers import PostgresLedger, RedisLedger
from tests.integration_tests.ledgers.conftest import NO_REDIS
from tests.integration_tests.ledgers.places import Place, fresh_name, opened
from tests.servers.stores import PostgresServer, RedisServer, Store
from tests.soaks import SOAK

ALL = Account("global", "")
KILLS = 5 if SOAK else 1


@pytest.fixture(params=["redis", "postgres"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "redis" and RedisServer.program() is None:
        pytest.skip(NO_REDIS)
    kind = {"redis": RedisServer, "postgres": PostgresServer}[request.param]
    with kind(fsync=True) as found:
        yield found


@pytest.fixture
def place(server: Store) -> Place:
    kind = "redis" if isinstance(server, RedisServer) else "postgres"
    return Place(kind, server.url, fresh_name())


def reserve(ledger: Ledger, key: str, *, now: float = 0, **limit: Any) -> Reservation:
    limits = [Limit(ALL, **limit)]
    return ledger.reserve(limits, Amount(10, 2, 1), key=key, now=now, expires_at=now + 100)


def test_what_ends_while_the_server_is_away_is_booked_when_it_is_back(server, place, caplog):
    with opened(place) as ledger:
        settled, released = reserve(ledger, "settled"), reserve(ledger, "released")
        server.kill()
        try:
            with pytest.raises(LedgerError, match="cannot be used"):
                reserve(ledger, "refused")
            with caplog.at_level(logging.WARNING):
                assert not ledger.settle(settled, Amount(7, 2, 1), now=1)
            assert "kept until the store is back" in caplog.text
            assert not ledger.release(released, now=1)
            never = Reservation("allowed", (ALL,), Amount(10, 2, 1), 100, "m", 1)
            assert not ledger.settle(never, Amount(3, 1, 1), now=2)
            with pytest.raises(LedgerError):
                ledger.spent(ALL, now=2)
            with pytest.raises(LedgerError):
                list(ledger.entries())
            assert ledger.waiting == 3
        finally:
            server.start()
        # The first to ask books what waits before anything is admitted.
        with pytest.raises(BudgetExceeded) as refused:
            reserve(ledger, "next", now=3, cost_nanousd=19)
        assert refused.value.left == 9
        assert ledger.waiting == 0
        reserve(ledger, "next", now=3, cost_nanousd=20)
        assert ledger.spent(ALL, now=4) == Amount(10, 3, 2)
        states = {e.key: e.state for e in ledger.entries()}
        assert states == {
            "settled": "settled",
            "released": "released",
            "allowed": "settled",
            "next": "open",
        }


def test_what_waits_in_a_process_that_ends_is_booked_at_its_worst_case(server, place):
    ledger = place.open()
    made = reserve(ledger, "a")
    server.kill()
    try:
        assert not ledger.settle(made, Amount(7, 2, 1), now=1)
        ledger.disconnect()  # tries, and gives up without a word
    finally:
        server.start()
    with opened(place) as another:
        assert another.spent(ALL, now=99) == Amount()
        assert another.spent(ALL, now=100) == Amount(10, 2, 1)
        (entry,) = another.entries()
        assert (entry.state, entry.estimated) == ("expired", True)


def test_disconnecting_books_what_waits_if_the_server_is_back(server, place):
    with opened(place) as ledger:
        made = reserve(ledger, "a")
        server.kill()
        try:
            assert not ledger.settle(made, Amount(7, 2, 1), now=1)
        finally:
            server.start()
        ledger.disconnect()
        assert ledger.waiting == 0
    with opened(place) as another:
        assert another.spent(ALL, now=2) == Amount(7, 2, 1)


def test_connections_that_broke_while_they_were_idle_are_not_noticed(server, place):
    with opened(place) as ledger:
        reserve(ledger, "a")
        server.kill()
        server.start()
        assert reserve(ledger, "b").key == "b"
        assert ledger.booked(ALL, now=0).calls == 2


def test_an_error_names_the_server_and_no_password():
    for ledger in (
        PostgresLedger("postgresql://ann:sesame@127.0.0.1:1/db", timeout_s=1),
        PostgresLedger("host=127.0.0.1 port=1 user=ann password=sesame", timeout_s=1),
        RedisLedger("redis://ann:sesame@127.0.0.1:1/0", timeout_s=1),
    ):
        with pytest.raises(LedgerError) as error:
            ledger.spent(ALL, now=0)
        assert "sesame" not in str(error.value)
        assert "127.0.0.1" in str(error.value)


@pytest.mark.timeout(300)
def test_a_crowd_loses_nothing_while_the_server_is_killed_and_comes_back(server, place):
    spent: dict[str, int] = {}
    refused: list[str] = []
    over = threading.Event()

    def work(name: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            try:
                made = reserve(ledger, f"{name}/{number}")
            except LedgerError:
                refused.append(name)
                time.sleep(0.01)
                continue
            actual = number % 10 + 1
            spent[made.key] = actual
            ledger.settle(made, Amount(actual, 1, 1), now=1)

    with opened(place) as ledger, ThreadPoolExecutor(4) as crowd:
        workers = [crowd.submit(work, str(n)) for n in range(4)]
        try:
            for _ in range(KILLS):
                wait_until(spent, len(spent) + 20)
                server.kill()
                try:
                    wait_until(refused, len(refused) + 4)
                finally:
                    server.start()
            wait_until(spent, len(spent) + 20)
        finally:
            over.set()
        for worker in workers:
            worker.result()
        reserve(ledger, "the last")
        assert ledger.waiting == 0
        entries = {e.key: e for e in ledger.entries()}
        for key, actual in spent.items():
            assert (entries[key].state, entries[key].amount) == ("settled", Amount(actual, 1, 1))
        # A reserve whose answer was lost with the connection: nobody spent it, and it expires.
        orphans = {k for k, e in entries.items() if k not in spent and e.state == "open"}
        worst = sum(spent.values()) + 10 * len(orphans)
        assert ledger.spent(ALL, now=100).cost_nanousd == worst


def wait_until(seen: Sized, count: int) -> None:
    give_up = time.monotonic() + 60
    while len(seen) < count:
        assert time.monotonic() < give_up, f"{len(seen)} of {count} after 60 s"
        time.sleep(0.01)
