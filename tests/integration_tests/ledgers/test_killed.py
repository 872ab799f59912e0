"""Processes that are killed at random points: nothing that was spent is forgotten.

A worker reserves, writes what it spent to a log that is on disk when the next line runs, and
settles. So whatever the log has was spent, and the ledger must count at least that.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from langchain_relay.engine.ledger import Account, Amount, Ledger, Limit, Reservation
from tests.integration_tests.ledgers.places import Place, opened
from tests.integration_tests.ledgers.workers import (
    FAR_S,
    GLOBAL,
    PROCESSES,
    WORST,
    spend_until_killed,
)
from tests.soaks import SOAK, note_soak

KILLS = 200 if SOAK else 20
AT_ONCE = 3
EXPIRES_IN_S = 3600.0
"""Longer than the test takes on any machine."""
SEED = 6


def logged(log: Path) -> dict[str, int]:
    """What was spent, by key; a line that was cut by the kill was never on disk as a whole."""
    whole = log.read_text().rpartition("\n")[0] if log.exists() else ""
    return {key: int(spent) for key, spent in (line.split() for line in whole.splitlines())}


@pytest.mark.timeout(300)
def test_nothing_spent_is_forgotten_however_often_workers_are_killed(shared_place, tmp_path):
    log, began_s = tmp_path / "spent", time.monotonic()
    chance = random.Random(SEED)
    with ExitStack() as stack:
        workers: list[Any] = []

        def start(*, settles: bool = True) -> None:
            worker = PROCESSES.Process(
                target=spend_until_killed,
                args=(shared_place, f"w{len(workers)}", str(log), EXPIRES_IN_S, settles),
                daemon=True,
            )
            worker.start()
            stack.callback(worker.join)
            stack.callback(worker.kill)
            workers.append(worker)

        for _ in range(AT_ONCE):
            start()
        for _ in range(KILLS):
            wait_for_lines(log, len(logged(log)) + 1)
            time.sleep(chance.uniform(0, 0.03))
            victim = workers.pop(chance.randrange(len(workers)))
            victim.kill()
            victim.join()
            assert victim.exitcode == -signal.SIGKILL
            start()
        # Chance need not have hit any between its line and the end of its settlement.
        start(settles=False)
        wait_until(lambda: any(f"-{workers[-1].pid}-" in key for key in logged(log)))
    facts = check(shared_place, logged(log))
    seconds = round(time.monotonic() - began_s, 1)
    note_soak(
        f"kills-{shared_place.kind}",
        {"ledger": shared_place.kind, "kills": KILLS, **facts, "seconds": seconds, "seed": SEED},
    )


def wait_for_lines(log: Path, count: int) -> None:
    wait_until(lambda: len(logged(log)) >= count)


def wait_until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not done():
        assert time.monotonic() < give_up, "the workers do nothing"
        time.sleep(0.005)


def check(place: Place, spent: dict[str, int]) -> dict[str, int]:
    """What must hold of the ledger that is left, and what it came to."""
    assert len(spent) > KILLS
    with opened(place) as ledger:
        before = {e.key: e for e in ledger.entries()}
        for key, amount in spent.items():
            entry = before[key]
            assert entry.state in ("open", "settled"), entry
            assert entry.amount.cost_nanousd >= amount
            assert entry.state == "open" or entry.amount == Amount(amount, 1, 1)
        orphans = {key for key, e in before.items() if e.state == "open"}
        assert orphans, "nobody was killed between reserve and settle: the test shows nothing"

        total = ledger.spent(GLOBAL, now=time.time() + FAR_S)

        after = {e.key: e for e in ledger.entries()}
        assert {key for key, e in after.items() if e.state == "expired"} == orphans
        assert all(after[k].amount == WORST and after[k].estimated for k in orphans)
        assert total == sum((e.amount for e in after.values()), Amount())
        assert total.cost_nanousd >= sum(spent.values())
        assert total == ledger.booked(GLOBAL, now=time.time() + FAR_S)
    if place.kind == "sqlite":
        assert sqlite3.connect(place.url).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return {
        "calls_that_spent": len(spent),
        "settled": len(after) - len(orphans),
        "orphans_settled_at_the_worst_case": len(orphans),
        "worst_case_nanousd": WORST.cost_nanousd,
        "spent_nanousd": sum(spent.values()),
        "ledger_nanousd": total.cost_nanousd,
    }


# --- one after the other: before each statement of an operation -----------------------------------


def dies_before_statement(place: Place, number: int, what: str) -> int:
    """A child that ends without warning before that statement; the signal, or 0 if it came through.

    Forked, so this is also what a forking server does with a ledger that its parent has opened.
    """
    child = os.fork()
    if child == 0:
        ledger = place.open()
        try:
            made = ledger.reserve([Limit(GLOBAL)], Amount(1), key="warm", now=0, expires_at=9)
            if what == "settle":
                made = ledger.reserve([Limit(GLOBAL)], Amount(9), key=what, now=0, expires_at=9)
            left = [number]

            def count(_: str) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            ledger._connection.set_trace_callback(count)
            if what == "settle":
                ledger.settle(made, Amount(4), now=1)
            else:
                ledger.reserve([Limit(GLOBAL)], Amount(9), key=what, now=0, expires_at=9)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("what", ["reserve", "settle"])
def test_an_operation_that_dies_before_any_of_its_statements_happened_or_did_not(place_of, what):
    whole = Amount(1 + 9) if what == "reserve" else Amount(1 + 4)
    none = Amount(1) if what == "reserve" else Amount(1 + 9)
    seen = []
    for number in range(100):
        place = place_of("sqlite")
        exit_code = dies_before_statement(place, number, what)
        with opened(place) as ledger:
            assert ledger.booked(GLOBAL, now=1) in (whole, none)
            seen.append(ledger.booked(GLOBAL, now=1))
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
    assert number > 5
    assert (seen[0], seen[-1]) == (none, whole)


def test_children_open_their_own_connections(shared_place):
    with opened(shared_place) as ledger:
        book(ledger, "parent")
        children = []
        for n in range(4):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for m in range(10):
                        book(ledger, f"{n}/{m}")
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        for m in range(10):
            book(ledger, f"parent/{m}")
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * 4
        assert ledger.spent(Account("global", ""), now=0).calls == 51


def book(ledger: Ledger, key: str) -> Reservation:
    account = Account("global", "")
    made = ledger.reserve([Limit(account)], Amount(1, 1, 1), key=key, now=0, expires_at=9)
    assert ledger.settle(made, Amount(1, 1, 1), now=0)
    return made
