"""When a host is asked, by a clock that the test winds."""

from __future__ import annotations

import threading

import pytest

from langchain_relay.delegates.breaker import CLOSED, OPEN_S, OPENS_AFTER, Breaker, Breakers, key

URL = "http://127.0.0.1:9/v1"

Row = tuple[float, str, float]
"""Time, what happens then, and the seconds until an attempt may go out behind it."""

LATE_SENT_AT = 3.5
"""Before the fifth of them failed."""

FIVE: list[Row] = [
    *[(0, "failed", 0.0), (1, "failed", 0.0), (2, "failed", 0.0), (3, "failed", 0.0)],
    (4, "failed", 30.0),
]

TABLES: dict[str, list[Row]] = {
    "five in a row open it for 30 s": [
        *FIVE,
        *[(4, "", 30.0), (20, "", 14.0), (33, "", 1.0), (34, "", 0.0), (99, "", 0.0)],
    ],
    "a response resets the count": [
        *FIVE[:4],
        (4, "answered", 0.0),
        *[(5, "failed", 0.0), (6, "failed", 0.0), (7, "failed", 0.0), (8, "failed", 0.0)],
        (9, "failed", 30.0),
    ],
    "a response closes an open one": [*FIVE, (5, "answered", 0.0), (6, "failed", 0.0)],
    "sending counts for nothing while it is closed": [
        *[(0, "sent", 0.0), (0, "sent", 0.0), (1, "failed", 0.0), (2, "sent", 0.0)],
    ],
    "one probing attempt in 30 s": [*FIVE, (34, "sent", 30.0), (40, "", 24.0)],
    "a probing attempt that fails opens it anew": [
        *FIVE,
        *[(34, "sent", 30.0), (40, "failed", 30.0), (69, "", 1.0), (70, "", 0.0)],
        *[(71, "sent", 30.0), (71, "failed", 30.0)],
    ],
    "a probing attempt that is answered closes it, and the count begins at 0": [
        *FIVE,
        *[(34, "sent", 30.0), (35, "answered", 0.0)],
        *[(36, "failed", 0.0), (37, "failed", 0.0), (38, "failed", 0.0), (39, "failed", 0.0)],
        (40, "failed", 30.0),
    ],
    "a probing attempt nobody hears of blocks nothing for ever": [
        *FIVE,
        *[(34, "sent", 30.0), (64, "", 0.0), (64, "sent", 30.0)],
    ],
    "attempts from before that fail late do not keep it open": [
        *FIVE,
        *[(10, "failed late", 24.0), (33, "failed late", 1.0), (34, "sent", 30.0)],
        (35, "failed", 30.0),
    ],
    "attempts from before an answer that fail late open nothing": [
        *FIVE,
        *[(34, "sent", 30.0), (35, "answered", 0.0)],
        *[(t, "failed late", 0.0) for t in (36, 37, 38, 39, 40)],
        *[(t, "failed", 0.0) for t in (41, 42, 43, 44)],
        (45, "failed", 30.0),
    ],
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_the_state_follows_the_table(rows: list[Row]):
    breaker = CLOSED
    for now, event, left_s in rows:
        match event:
            case "failed":
                breaker = breaker.failed(now, now)
            case "failed late":
                breaker = breaker.failed(now, LATE_SENT_AT)
            case "answered":
                breaker = Breaker(known_at=now)
            case "sent":
                breaker = breaker.sent(now)
        assert breaker.left_s(now) == left_s, (now, event)


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_the_registry_follows_the_same_table(rows: list[Row]):
    breakers = Breakers()
    for now, event, left_s in rows:
        match event:
            case "failed":
                breakers.failed(URL, now)
            case "failed late":
                breakers.failed(URL, now, LATE_SENT_AT)
            case "answered":
                breakers.answered(URL, now)
            case "sent":
                assert breakers.send(URL, now) == 0
        assert breakers.left_s(URL, now) == left_s, (now, event)


def opened(now: float = 0.0) -> Breakers:
    breakers = Breakers()
    for _ in range(OPENS_AFTER):
        breakers.failed(URL, now)
    return breakers


def test_each_base_url_has_its_own():
    breakers = opened()
    assert breakers.left_s(URL, 0) == OPEN_S
    assert breakers.left_s("http://127.0.0.1:9/v2", 0) == 0


def test_who_names_no_base_url_has_none():
    breakers = Breakers()
    for _ in range(99):
        breakers.failed(None, 0)
    assert (breakers.left_s(None, 0), breakers.send(None, 0)) == (0, 0)
    breakers.answered(None, 0)


def test_what_may_not_go_out_takes_no_turn():
    breakers = opened()
    assert breakers.send(URL, 10) == 20
    assert breakers.send(URL, 29) == 1
    assert breakers.send(URL, 30) == 0


def test_of_many_threads_one_probes():
    breakers = opened()
    go, asked = threading.Barrier(16), []

    def ask():
        go.wait()
        asked.append(breakers.send(URL, 30))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [0, *[OPEN_S] * 15]


def test_forgetting_closes():
    breakers = opened()
    breakers.forget()
    assert breakers.left_s(URL, 0) == 0


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("http://host:1/v1/", "http://host:1/v1"),
        ("http://host:1/v1", "http://host:1/v1"),
        (None, None),
        ("", None),
    ],
)
def test_a_slash_makes_no_other_host(base_url: str | None, name: str | None):
    assert key(base_url) == name
