"""What only a ledger on a server has: schemas of other versions, scripts that are gone, TTLs."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import redis

from langchain_relay.engine.ledger import MOST, Account, Amount, Limit
from langchain_relay.errors import UsageMistake
from langchain_relay.ledgers import RedisLedger
from langchain_relay.ledgers.redis import DAY_S
from tests.integration_tests.ledgers.places import opened

ALL = Account("global", "")


def reserve(ledger, key="a", nanousd=5):
    return ledger.reserve([Limit(ALL)], Amount(nanousd, 1, 1), key=key, now=1, expires_at=9)


def test_a_postgres_schema_of_a_newer_version_is_refused(place_of):
    place = place_of("postgres")
    with opened(place) as ledger:
        reserve(ledger)
    with psycopg.connect(place.url) as db:
        db.execute(f"UPDATE {place.name}.schema_version SET version = 99")
    with opened(place) as ledger, pytest.raises(UsageMistake, match=r"schema 99 in ledger_\d+"):
        reserve(ledger, "b")


def test_an_empty_postgres_schema_that_exists_is_used(place_of):
    place = place_of("postgres")
    with psycopg.connect(place.url) as db:
        db.execute(f"CREATE SCHEMA {place.name}")
    with opened(place) as ledger:
        assert reserve(ledger).key == "a"


def test_a_redis_prefix_of_another_version_is_refused_and_left_alone(place_of):
    place = place_of("redis")
    client = redis.Redis.from_url(place.url, decode_responses=True)
    client.set(f"{{{place.name}}}:schema", "99")
    with opened(place) as ledger, pytest.raises(UsageMistake, match="schema 99"):
        reserve(ledger)
    assert client.keys(f"{{{place.name}}}*") == [f"{{{place.name}}}:schema"]
    client.close()


def test_a_redis_that_forgot_the_script_learns_it_again(place_of):
    place = place_of("redis")
    client = redis.Redis.from_url(place.url)
    with opened(place) as ledger:
        reserve(ledger, "a")
        client.script_flush()
        reserve(ledger, "b")
        assert ledger.booked(ALL, now=1).calls == 2
    client.close()


def test_all_names_of_a_prefix_are_in_one_slot(place_of):
    place = place_of("redis")
    client = redis.Redis.from_url(place.url, decode_responses=True)
    with opened(place) as ledger:
        ledger.settle(reserve(ledger), Amount(3), now=2)
        reserve(ledger, "open")
    names = client.keys(f"*{place.name}*")
    assert len(names) >= 6
    assert all(str(name).startswith(f"{{{place.name}}}") for name in names)
    client.close()


def test_only_finished_attempts_have_an_end_and_leave_the_history_with_it(place_of):
    place = place_of("redis")
    client = redis.Redis.from_url(place.url, decode_responses=True)
    base = f"{{{place.name}}}"
    ledger = RedisLedger(place.url, prefix=place.name, history_days=3)
    ledger.settle(reserve(ledger, "done"), Amount(3, 1, 1), now=2)
    reserve(ledger, "open")
    assert 3 * DAY_S - 60 < client.ttl(f"{base}:attempt:done") <= 3 * DAY_S
    assert client.ttl(f"{base}:attempt:open") == -1
    (account,) = client.keys(f"{base}:account:*")
    assert client.ttl(account) == -1

    client.delete(f"{base}:attempt:done")  # as its end does

    assert [e.key for e in ledger.entries()] == ["open"]
    reserve(ledger, "next")
    assert client.zrange(f"{base}:history", 0, -1) == ["next", "open"]
    assert ledger.booked(ALL, now=2) == Amount(13, 3, 3)
    ledger.disconnect()
    client.close()


def test_a_counter_stops_at_the_most_it_holds(shared_place):
    """An overage of thousands of millions of dollars: no error in the middle of an answer."""
    with opened(shared_place) as ledger:
        first, second = reserve(ledger, "a"), reserve(ledger, "b")
        for made in (first, second):
            assert ledger.settle(made, Amount(MOST + 5, 1, 1), now=2)
        assert ledger.spent(ALL, now=2) == ledger.booked(ALL, now=2) == Amount(MOST, 2, 2)


def test_accounts_in_any_order_never_lock_each_other_out(place_of):
    """New accounts, old ones and expired attempts of others, by 16 threads in opposite orders."""
    place = place_of("postgres")
    names = [Account("user", f"u{n}") for n in range(6)]

    def work(worker: int) -> None:
        chance = random.Random(worker)
        for n in range(25):
            some = chance.sample(names, 4)
            fresh = [Account("run", f"{n}/{m}") for m in chance.sample(range(3), 2)]
            made = ledger.reserve(
                [Limit(account) for account in (*some, *fresh)],
                Amount(1, 1, 1),
                key=f"{worker}/{n}",
                now=n,
                expires_at=n + 1,
            )
            if n % 3:
                ledger.settle(made, Amount(1, 1, 1), now=n)

    with opened(place) as ledger, ThreadPoolExecutor(16) as crowd:
        for done in [crowd.submit(work, n) for n in range(16)]:
            done.result()
        total = sum(ledger.spent(name, now=99).calls for name in names)
    assert total == 16 * 25 * 4
    with psycopg.connect(place.url) as db:
        found = db.execute("SELECT sum(deadlocks) FROM pg_stat_database").fetchone()
    assert found == (0,)
