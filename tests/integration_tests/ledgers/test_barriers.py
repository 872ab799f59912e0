"""Threads and processes that all begin at once: a limit that admits k admits exactly k."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from langchain_relay.engine.ledger import Account, Ledger, Limit
from tests.integration_tests.ledgers.places import opened
from tests.integration_tests.ledgers.workers import (
    GLOBAL,
    PROCESSES,
    Tally,
    running,
    spend,
    spend_in,
)
from tests.soaks import SOAK, note_soak

RESERVATIONS = 157 * 64 if SOAK else 20 * 64
K = RESERVATIONS // 3
LIMIT_NANOUSD = 10 * K + 9
USER = Account("user", "ann")


@pytest.fixture(scope="module")
def soaks() -> Iterator[list[dict[str, Any]]]:
    """What each test of this module counted."""
    found: list[dict[str, Any]] = []
    yield found
    note_soak(
        "barriers",
        {"reservations": RESERVATIONS, "admits": K, "limit_nanousd": LIMIT_NANOUSD, "runs": found},
    )


@pytest.fixture
def note(soaks: list[dict[str, Any]]) -> Callable[..., None]:
    """Keep what one of them counted."""
    began_s = time.monotonic()

    def keep(kind: str, tally: Tally, **facts: Any) -> None:
        counts = {
            "admitted": tally.admitted,
            "most_outside_nanousd": tally.most,
            "most_booked_nanousd": tally.booked,
            "seconds": round(time.monotonic() - began_s, 1),
        }
        soaks.append({"ledger": kind, **facts, **counts})

    return keep


def check(ledger: Ledger, tally: Tally) -> None:
    assert tally.admitted == K
    assert ledger.spent(GLOBAL, now=0) == ledger.booked(GLOBAL, now=0)
    assert ledger.spent(GLOBAL, now=0).cost_nanousd == 10 * K
    assert ledger.spent(USER, now=0).calls == K
    assert sum(e.state == "settled" for e in ledger.entries()) == K
    assert tally.most == tally.booked == 10 * K


def test_64_threads_are_admitted_exactly_k_times(place, ledger, note):
    tally = Tally()
    limits = [Limit(GLOBAL, cost_nanousd=LIMIT_NANOUSD), Limit(USER)]
    spend_in(
        *(ledger, "t"),
        threads=64,
        each=RESERVATIONS // 64,
        limits=limits,
        tally=tally,
        barrier=threading.Barrier(64),
    )
    check(ledger, tally)
    note(place.kind, tally, processes=1, threads=64, some_given_back=False)


@pytest.mark.parametrize("gives_back", [False, True], ids=["settled", "some given back"])
def test_8_processes_of_8_threads_never_pass_the_limit(shared_place, gives_back, note):
    tally, barrier = Tally(), PROCESSES.Barrier(64)
    limits = [
        Limit(GLOBAL, cost_nanousd=LIMIT_NANOUSD, warn_at=0.8 if gives_back else None),
        Limit(USER),
    ]
    with running(
        spend,
        shared_place,
        count=8,
        threads=8,
        each=RESERVATIONS // 64,
        limits=limits,
        tally=tally,
        barrier=barrier,
    ) as processes:
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 8
    if not gives_back:
        with opened(shared_place) as ledger:
            check(ledger, tally)
    assert max(tally.most, tally.booked) <= 10 * K
    assert tally.admitted >= K
    note(shared_place.kind, tally, processes=8, threads=64, some_given_back=gives_back)


def test_processes_that_open_an_empty_place_at_once_make_it_once(place_of):
    """Schema creation, in a file and in a database."""
    for kind in ("sqlite", "postgres"):
        place = place_of(kind)
        tally, barrier = Tally(), PROCESSES.Barrier(8)
        limits = [Limit(GLOBAL, cost_nanousd=10**6)]
        with running(
            spend,
            place,
            count=8,
            threads=1,
            each=1,
            limits=limits,
            tally=tally,
            barrier=barrier,
        ) as processes:
            for process in processes:
                process.join()
            assert [process.exitcode for process in processes] == [0] * 8
        with opened(place) as ledger:
            assert ledger.spent(GLOBAL, now=0).calls == 8
